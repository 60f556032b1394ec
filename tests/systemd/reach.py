"""Writes which of some sockets this process can connect to; what another scenario has a unit run in its sandbox."""

import json
import socket
import sys


def reaches(path):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as stream:
            try:
                stream.connect(path)
                return True
            except OSError:
                pass
    return False


with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump([path for path in sys.argv[2:] if reaches(path)], file)
