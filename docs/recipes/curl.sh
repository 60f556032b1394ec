#!/usr/bin/env bash
# Asks authsock with curl: who am I, and what happens. Run it as `authsock run -- ./curl.sh`, which makes it a session.
set -euo pipefail
: "${AUTHSOCK_SOCKET:?run this as: authsock run -- $0}" "${AUTHSOCK_TOKEN_FILE:?run this as: authsock run -- $0}"

# printf is the shell's own, and the token comes by a pipe: it is in no program's arguments.
authsock() {
    local path=$1
    shift
    curl --silent --show-error --fail-with-body --unix-socket "$AUTHSOCK_SOCKET" \
        --header @<(printf 'Authorization: Bearer %s\n' "$(<"$AUTHSOCK_TOKEN_FILE")") "$@" "http://authsock$path"
}

echo "I am:"
authsock /v1/whoami
echo

echo "Published:"
authsock /v1/rpc --json '{"jsonrpc":"2.0","id":1,"method":"events.publish","params":{"subject":"recipes.curl","data":"hello"}}'
echo

# Without follow=false it would go on for as long as the session does.
echo "What is kept of recipes.>:"
authsock /v1/events --get --no-buffer --data-urlencode 'subject=recipes.>' --data since=0 --data follow=false
