"""Blobs in an S3 bucket, through the `minio` SDK: one object a blob, named by its SHA-256.

A blob is first made durable in a spool folder on this machine, whose hash is checked there, and then sent as a whole,
in parts when it is large. The bucket is claimed for one server's database by an object that is written only when there
is none: two servers that were given the same bucket would delete each other's blobs.
"""

from __future__ import annotations

import hashlib
import io
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import urllib3
from tinylcm.files import make_folder

from .errors import BusyError, NotFoundError, StartError
from .store import Finished, Spool

LINK_S_MAX: Final = 900
PART_BYTES: Final = 16 << 20
PIECE_BYTES: Final = 256 << 10
LISTED_MAX: Final = 1_000_000
_TIMEOUT: Final = urllib3.Timeout(connect=5.0, read=60.0)
_OWNER: Final = "owner"
_ADVICE: Final = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_REGION where it matters)"


class S3Store(Spool):
    """Blobs under `bucket/prefix/<aa>/<sha256>`.

    Args:
        url: `https://host[:port]/bucket[/prefix]`; http for this machine alone, unless `insecure`.
        spool: folder for what is on its way.
        owner: whose bucket it is: the database's instance.
        insecure: plain http to another machine is allowed.
        former: an owner from whom it may be taken over, `*` for any: of a database that was restored.

    Raises:
        StartError: the address or the credentials are none, the bucket is not there, or it is another server's.
    """

    def __init__(self, url: str, spool: Path, owner: str, *, insecure: bool = False, former: str | None = None) -> None:
        super().__init__(make_folder(spool, private=True))
        try:
            import minio
        except ImportError:
            raise StartError("an object store needs the MinIO SDK: pip install 'tinymlops[s3]'") from None
        parts = urlsplit(url)
        self.bucket, _, prefix = parts.path.strip("/").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        is_here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if parts.scheme not in ("http", "https") or not parts.hostname or not self.bucket or parts.username:
            raise StartError("the object store's address is like https://host:port/bucket, without credentials")
        if parts.scheme == "http" and not is_here and not insecure:
            raise StartError(f"blobs would travel to {parts.hostname} in the clear; use https, or say --insecure")
        access, secret = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
        if not access or not secret:
            raise StartError(f"the object store's credentials are not set: {_ADVICE}")
        self._http = urllib3.PoolManager(
            maxsize=16,
            timeout=_TIMEOUT,
            retries=urllib3.Retry(total=2, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
            ssl_context=ssl.create_default_context(),
        )
        self._client = minio.Minio(
            parts.netloc,
            access_key=access,
            secret_key=secret,
            session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
            region=os.environ.get("AWS_REGION") or "us-east-1",
            secure=parts.scheme == "https",
            http_client=self._http,
        )
        try:
            self._claim(owner, former)
        except (BusyError, NotFoundError, ValueError) as error:
            raise StartError(f"the object store {parts.netloc}/{self.bucket} cannot be used: {error}") from error

    def _claim(self, owner: str, former: str | None) -> None:
        """Make the bucket ours, or see that it is."""
        with _told():
            if not self._client.bucket_exists(self.bucket):
                raise NotFoundError(f"there is no bucket {self.bucket}; make it first, with versioning if you like")
        if self.put_new(_OWNER, owner.encode()):
            return
        found = b"".join(self._read(self._prefix + _OWNER, 0, 64)).decode("ascii", "replace")
        if found != owner and former in (found, "*"):
            with _told():
                data = owner.encode()
                self._client.put_object(self.bucket, self._prefix + _OWNER, io.BytesIO(data), len(data))
        elif found != owner:
            raise StartError(
                f"the bucket {self.bucket} belongs to the server with the database {found}, this one is {owner}: "
                "give each a bucket or a prefix of its own"
            )

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a small object only if there is none of its name (If-None-Match); whether it was written."""
        with _told():
            url = self._client.presigned_put_object(self.bucket, self._prefix + name, timedelta(seconds=60))
            answer = self._http.request("PUT", url, body=data, headers={"If-None-Match": "*"}, retries=False)
        if answer.status == 412:
            return False
        if answer.status != 200:
            raise BusyError(f"the object store answered {answer.status}", retry_after_s=5)
        return True

    def _name(self, sha256: str) -> str:
        return f"{self._prefix}{sha256[:2]}/{sha256}"

    def uri(self, sha256: str) -> str:
        """The `s3://` address of a blob, for other programs."""
        return f"s3://{self.bucket}/{self._name(sha256)}"

    def put(self, upload: Finished, sha256: str) -> None:
        """Send a finished upload; it is kept in the spool until it is there.

        Raises:
            BusyError: the store cannot be reached or refuses; nothing was stored.
        """
        if self.size(sha256) is None:
            with _told():
                self._client.fput_object(self.bucket, self._name(sha256), str(upload.path), part_size=PART_BYTES)
        upload.path.unlink(missing_ok=True)

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, or None when it is not there."""
        try:
            with _told():
                found = self._client.stat_object(self.bucket, self._name(sha256)).size
        except NotFoundError:
            return None
        return None if found is None else int(found)

    def local(self, sha256: str) -> None:
        """No file of this machine."""

    def read(self, sha256: str, first: int = 0, length: int | None = None) -> Iterator[bytes]:
        """A blob's bytes from `first` on, in pieces.

        Raises:
            NotFoundError: it is not there.
            BusyError: the store cannot be reached.
        """
        return self._read(self._name(sha256), first, length)

    def _read(self, name: str, first: int, length: int | None) -> Iterator[bytes]:
        with _told():
            answer = self._client.get_object(self.bucket, name, offset=first, length=length or 0)
        return _pieces(answer)

    def delete(self, sha256: str) -> None:
        """Remove a blob, with every version of it that a versioned bucket has kept."""
        name = self._name(sha256)
        with _told():
            listed = self._client.list_objects(self.bucket, prefix=name, include_version=True)
            versions = [item.version_id for item in listed if item.object_name == name][:1000]
            for version in versions or [None]:
                self._client.remove_object(self.bucket, name, version_id=version)

    def names(self) -> Iterator[str]:
        """The SHA-256 of every blob."""
        with _told():
            for number, item in enumerate(self._client.list_objects(self.bucket, prefix=self._prefix, recursive=True)):
                if number >= LISTED_MAX:
                    return
                name = str(item.object_name).rpartition("/")[2]
                if len(name) == 64:
                    yield name

    def link(self, sha256: str, ttl_s: int = LINK_S_MAX, method: Literal["GET", "PUT"] = "GET") -> str:
        """An address that fetches or stores one blob without credentials, for at most 15 minutes.

        Raises:
            ValueError: a longer time.
        """
        if not 0 < ttl_s <= LINK_S_MAX:
            raise ValueError(f"a link lives 1 to {LINK_S_MAX} seconds, got {ttl_s}")
        with _told():
            return str(
                self._client.get_presigned_url(method, self.bucket, self._name(sha256), timedelta(seconds=ttl_s))
            )

    def check(self) -> None:
        """See whether the store answers.

        Raises:
            BusyError: it does not.
        """
        with _told():
            self._client.bucket_exists(self.bucket)

    def verify(self, sha256: str) -> bool:
        """Whether a blob's bytes have the hash of its name."""
        digest = hashlib.sha256()
        for piece in self.read(sha256):
            digest.update(piece)
        return digest.hexdigest() == sha256


def _pieces(answer: Any) -> Iterator[bytes]:
    try:
        with _told():
            yield from answer.stream(PIECE_BYTES)
    finally:
        answer.close()
        answer.release_conn()


@contextmanager
def _told() -> Iterator[None]:
    """Say in our words what the SDK and its HTTP raise."""
    from minio.error import MinioException, S3Error

    try:
        yield
    except S3Error as error:
        if error.code in ("NoSuchKey", "NoSuchBucket", "NoSuchObject"):
            raise NotFoundError("the object store does not have it") from error
        raise BusyError(f"the object store refuses: {error.code}: {error.message}", retry_after_s=5) from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise BusyError(
            f"the object store cannot be reached ({type(error).__name__}); nothing was lost, try again", retry_after_s=5
        ) from error
