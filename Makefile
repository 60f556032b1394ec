# What is run by hand and by CI; the cheapest first. `make check` is what .ci/run runs.
.PHONY: check test test-as-user format clippy docs shell http systemd macos install

check: format shell test test-as-user clippy docs http systemd macos

# The tests. What needs root, or a program that is not installed, says so and is skipped.
test:
	cargo test --locked

# The same as an ordinary user, in a clone of its own; needs root.
test-as-user:
	tests/as-ordinary-user

format:
	cargo fmt --check

clippy:
	cargo clippy --locked --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

shell:
	shellcheck .ci/run tests/as-ordinary-user tests/http/run tests/systemd/run tests/systemd/with-systemd packaging/macos/check-macos

# What docs/openapi.json says, tried by schemathesis, which is installed into a folder of its own.
http:
	cargo build --locked
	tests/http/run

# Under real, throwaway systemds; needs root.
systemd:
	cargo build --locked
	tests/systemd/run target/debug/authsock

# Type-check, lint and link for macOS; needs root.
macos:
	packaging/macos/check-macos --target aarch64-apple-darwin --target x86_64-apple-darwin

# For packages; packaging/README.md says what goes where. The program must have been built.
DESTDIR ?=
PREFIX ?= /usr
AUTHSOCK ?= $(or $(CARGO_TARGET_DIR),target)/release/authsock
# One that runs here, where the other is for another kind of machine.
GENERATOR ?= $(AUTHSOCK)
DARWIN := $(filter Darwin,$(shell uname -s))
ZSH_COMPLETIONS ?= $(PREFIX)/share/zsh/$(if $(DARWIN),site-functions,vendor-completions)
DOC = $(DESTDIR)$(PREFIX)/share/doc/authsock
# systemd's; macOS has none.
UNITS = $(if $(DARWIN),,$(wildcard systemd/*/*.service systemd/*/*.socket))
PRESETS = $(if $(DARWIN),,$(wildcard packaging/systemd/*/*.preset))
EXAMPLES = $(if $(DARWIN),,$(wildcard systemd/*.conf systemd/*/*.conf systemd/*/*/*.conf))
# Where systemd is 253 or later: NOTIFY_RELOAD=yes has its units reload better.
NOTIFY_RELOAD ?=
DROPINS = $(if $(and $(UNITS),$(NOTIFY_RELOAD)),user system)
# What the documents lead to lies beside them as it does here.
DOCUMENTS = README.md CHANGELOG.md ARCHITECTURE.md SECURITY.md $(wildcard LICENSE-* docs/*.md launchd/*.plist) \
	packaging/README.md docs/openapi.json $(wildcard docs/recipes/*) tests/clients/prove.py $(wildcard tests/vectors/*.json tests/vectors/*.md tests/vectors/make.py)

# $(call folder,DIRECTORY) makes it, parents and all, with modes that do not hang on the umask.
folder = umask 022; mkdir -p '$(1)'

install:
	@test -x '$(AUTHSOCK)' || { echo 'there is no $(AUTHSOCK): cargo build --release --locked makes it' >&2; exit 1; }
	$(call folder,$(DESTDIR)$(PREFIX)/bin) && install -m 755 '$(AUTHSOCK)' '$(DESTDIR)$(PREFIX)/bin/authsock'
	umask 022; for unit in $(UNITS); do \
		to='$(DESTDIR)$(PREFIX)/lib/'"$$unit"; mkdir -p "$${to%/*}" && \
		sed 's|/usr/bin/authsock|$(PREFIX)/bin/authsock|g' "$$unit" >"$$to" && chmod 644 "$$to" || exit 1; \
	done
	umask 022; for preset in $(PRESETS); do \
		to='$(DESTDIR)$(PREFIX)/lib/'"$${preset#packaging/}"; mkdir -p "$${to%/*}" && \
		install -m 644 "$$preset" "$$to" || exit 1; \
	done
	umask 022; for kind in $(DROPINS); do \
		to='$(DESTDIR)$(PREFIX)/lib/systemd/'"$$kind/authsock.service.d"; mkdir -p "$$to" && \
		install -m 644 "systemd/$$kind/notify-reload.conf" "$$to/" || exit 1; \
	done
	$(call folder,$(DESTDIR)$(PREFIX)/share/man/man1) && '$(GENERATOR)' generate man '$(DESTDIR)$(PREFIX)/share/man/man1' >/dev/null
	umask 022; made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT && '$(GENERATOR)' generate completions "$$made" >/dev/null && \
		for place in 'authsock $(PREFIX)/share/bash-completion/completions' '_authsock $(ZSH_COMPLETIONS)' \
			'authsock.fish $(PREFIX)/share/fish/vendor_completions.d'; do \
			to='$(DESTDIR)'"$${place#* }"; mkdir -p "$$to" && install -m 644 "$$made/$${place%% *}" "$$to/" || exit 1; \
		done
	umask 022; for document in $(DOCUMENTS); do \
		to='$(DOC)/'"$$document"; mkdir -p "$${to%/*}" && install -m 644 "$$document" "$$to" || exit 1; \
	done
	umask 022; for example in $(EXAMPLES); do \
		to='$(DOC)/examples/'"$${example#systemd/}"; mkdir -p "$${to%/*}" && \
		install -m 644 "$$example" "$$to" || exit 1; \
	done
