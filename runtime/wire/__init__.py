"""What device and server say to each other: records and the one round trip that carries them.

`messages` holds the values and the checks of every field, `codec` their three encodings (JSON, msgpack, Protobuf),
`compression` gzip with a bound. `telemetry.proto` is the schema of all three.

`WIRE_VERSION` counts changes of this format and nothing else; a server serves every version that it ever had.
Unknown fields are ignored, unknown record types are kept.
"""

from .._ext.records import RecordReader, record_id, with_ids
from .codec import (
    CONTENT_TYPES,
    Format,
    check_format,
    decode_request,
    decode_response,
    encode,
    format_of,
    formats,
    is_web_page,
)
from .compression import GZIP_BYTES_MIN, ExpansionError, compress, expand
from .messages import (
    DESIRED_UNCHANGED,
    RECORD_BYTES_MAX,
    STREAMS,
    SYNC_BYTES_MAX,
    SYNC_RECORDS_MAX,
    WIRE_VERSION,
    Anchor,
    Board,
    Desired,
    DesiredModel,
    Refused,
    RunningModel,
    SyncRequest,
    SyncResponse,
    WireVersionError,
    board_from_json,
    canonical_json,
    finite,
    is_plain,
    record_from_json,
    record_reader,
    record_to_json,
)

__all__ = [
    "CONTENT_TYPES",
    "DESIRED_UNCHANGED",
    "GZIP_BYTES_MIN",
    "RECORD_BYTES_MAX",
    "STREAMS",
    "SYNC_BYTES_MAX",
    "SYNC_RECORDS_MAX",
    "WIRE_VERSION",
    "Anchor",
    "Board",
    "Desired",
    "DesiredModel",
    "ExpansionError",
    "Format",
    "RecordReader",
    "Refused",
    "RunningModel",
    "SyncRequest",
    "SyncResponse",
    "WireVersionError",
    "board_from_json",
    "canonical_json",
    "check_format",
    "compress",
    "decode_request",
    "decode_response",
    "encode",
    "expand",
    "finite",
    "format_of",
    "formats",
    "is_plain",
    "is_web_page",
    "record_from_json",
    "record_id",
    "record_reader",
    "record_to_json",
    "with_ids",
]
