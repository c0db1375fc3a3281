"""The local side of downloads and uploads, for brokers that copy: files of the caller's, touched as the caller."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import BinaryIO

from storage.brokers.broker import FileDownload, FileUpload
from storage.files import FILE_MODE, FileView, check_local_path
from storage.os_errors import os_errors, quoted
from storage.transfer import Unfinished, refuse_no_file


def open_local(view: FileView, upload: FileUpload) -> BinaryIO:
    """The local file of an upload, open for reading; close it.

    Raises:
        MissingFile, InvalidPath, PermissionDenied: the caller has no such regular file.
    """
    path, local_path = upload.file.file_path, upload.local_path
    check_local_path(local_path)
    with os_errors(f"upload {quoted(path)} from local_path {quoted(local_path)}"), view.acting():
        return open(view.open_local(local_path), "rb")


def write_local(view: FileView, download: FileDownload, content: Iterable[bytes], *, overwrite: bool) -> None:
    """Make `content` the file at a download's local path: in one step and durable, or not at all.

    Raises:
        AlreadyExists: what is no file is there, or anything is and `overwrite` is false.
        InvalidPath, PermissionDenied, NoSpace, ReadOnly: the caller cannot have a file there.
    """
    path, local_path = download.file.file_path, download.local_path
    check_local_path(local_path)
    with os_errors(f"download {quoted(path)} to local_path {quoted(local_path)}"), contextlib.ExitStack() as stack:
        with view.acting():
            parent, name = stack.enter_context(view.local_parent(local_path))
            refuse_no_file(parent, name)
            new = Unfinished(parent)
        try:
            with open(new.fd, "wb", closefd=False) as file:
                file.writelines(content)  # as ourselves: who knows where it comes from
            os.fchmod(new.fd, FILE_MODE)
            os.fsync(new.fd)
            with view.acting():
                new.publish(name, overwrite=overwrite)
                parent.sync()
        finally:
            with view.leaving():
                new.close()
