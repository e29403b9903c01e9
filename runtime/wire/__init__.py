"""What device and server say to each other: records and the one round trip that carries them.

`WIRE_VERSION` counts changes of this format and nothing else; a server serves every version that it ever had.
Unknown fields are ignored, unknown record types are kept.
"""

from .messages import (
    DESIRED_UNCHANGED,
    RECORD_BYTES_MAX,
    STREAMS,
    SYNC_BYTES_MAX,
    SYNC_RECORDS_MAX,
    WIRE_VERSION,
    Anchor,
    Desired,
    DesiredModel,
    Refused,
    RunningModel,
    SyncRequest,
    SyncResponse,
    canonical_json,
    decode_request,
    decode_response,
    encode,
    finite,
    record_from_json,
    record_id,
    record_to_json,
)

__all__ = [
    "DESIRED_UNCHANGED",
    "RECORD_BYTES_MAX",
    "STREAMS",
    "SYNC_BYTES_MAX",
    "SYNC_RECORDS_MAX",
    "WIRE_VERSION",
    "Anchor",
    "Desired",
    "DesiredModel",
    "Refused",
    "RunningModel",
    "SyncRequest",
    "SyncResponse",
    "canonical_json",
    "decode_request",
    "decode_response",
    "encode",
    "finite",
    "record_from_json",
    "record_id",
    "record_to_json",
]
