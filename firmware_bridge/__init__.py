"""Boards (microcontrollers) behind a device, on a serial line that loses bytes; the other end is the C library in `c/`.

Bottom up: `frames` (bytes), `messages` (what they mean), `protocol` (who answers whom), `transfer` (a model's way), all
without input or output; `ports` and `link` (a port and the session on it); `slots`, `interpreter`, `simboard` and
`simulator` (a board in Python). docs/wire.md, "The serial line", is the contract.

    from firmware_bridge.link import open_link
    from firmware_bridge.messages import StreamRequest

    with open_link("/dev/ttyACM0") as link:
        link.ask(StreamRequest(stream=0, on=True))
        print(link.poll(1.0))
"""
