#!/usr/bin/env python3
"""A client of authsock in Python, with nothing but its standard library: publishes an event and hears it.

Run it as `authsock run -- ./client.py`, which makes it a session; by itself it is the owner of the
user's own daemon.
"""

import http.client
import json
import os
import socket
import sys


def place():
    """The socket, as docs/protocol.md says where to look."""
    if named := os.environ.get("AUTHSOCK_SOCKET"):
        return named
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    found = f"{runtime}/authsock.sock"
    return found if os.path.exists(found) else f"{runtime}/authsock-ondemand.sock"


def token():
    """The token; it goes nowhere but into the header field of a request."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    with open(os.environ.get("AUTHSOCK_TOKEN_FILE") or f"{runtime}/authsock/token", encoding="ascii") as file:
        return file.read().strip()


class Connection(http.client.HTTPConnection):
    """HTTP over the daemon's Unix socket."""

    def __init__(self, timeout=10):
        super().__init__("authsock", timeout=timeout)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        path = place()
        try:
            self.sock.connect(path)
        except OSError as problem:
            raise OSError(f"{path}: {problem.strerror}; `authsock status` starts the daemon where none runs") from problem


def ask(method, path, body=None, headers=None):
    """One request; its answer, or an error with the daemon's own words."""
    connection = Connection()
    fields = {"Authorization": f"Bearer {token()}", **(headers or {})}
    connection.request(method, path, body, fields)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status >= 400:
        raise RuntimeError(json.loads(text)["detail"] if text else answer.reason)
    return json.loads(text) if text else None


def call(method, **params):
    """A method of JSON-RPC."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    answer = ask("POST", "/v1/rpc", json.dumps(request), {"Content-Type": "application/json"})
    if "error" in answer:
        raise RuntimeError(answer["error"]["message"])
    return answer["result"]


def events(*subjects, last_id=None):
    """Events as they come: pairs of a name and what it tells. `event` is an event; see docs/http.md for the others."""
    query = "&".join("subject=" + subject.replace(">", "%3E") for subject in subjects)
    # The daemon says every 15 seconds that it lives.
    connection = Connection(timeout=60)
    fields = {"Authorization": f"Bearer {token()}"}
    if last_id:
        fields["Last-Event-ID"] = last_id
    connection.request("GET", f"/v1/events?{query}", headers=fields)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(json.loads(answer.read())["detail"])
    name, data = "event", ""
    for line in answer:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = value
        elif not field and data:
            yield name, json.loads(data)
            name, data = "event", ""


def main():
    me = ask("GET", "/v1/whoami")["session"]
    print("session", me["id"], me["name"])
    stream = events("recipes.>")
    name, begun = next(stream)
    assert name == "subscribed", begun
    # What comes meanwhile waits in the stream.
    call("events.publish", subject="recipes.python", data={"from": "python"})
    name, event = next(stream)
    print(name, event["subject"], event["publisher"]["name"], json.dumps(event["data"]))


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError) as problem:
        sys.exit(f"authsock: {problem}")
