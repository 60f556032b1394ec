# What is run by hand and by CI; the cheapest first. `make check` is what .ci/run runs.
.PHONY: check test test-as-user format clippy docs shell systemd macos

check: format shell test test-as-user clippy docs systemd macos

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
	shellcheck .ci/run tests/as-ordinary-user tests/systemd/run tests/systemd/with-systemd packaging/macos/check-macos

# Under real, throwaway systemds; needs root.
systemd:
	cargo build --locked
	tests/systemd/run target/debug/authsock

# Type-check, lint and link for macOS; needs root.
macos:
	packaging/macos/check-macos --target aarch64-apple-darwin --target x86_64-apple-darwin
