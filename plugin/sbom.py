"""What a plugin's archive consists of, as CycloneDX has it: the only home of `cyclonedx`.

Read from the archive itself and not from what was asked for: Python's packages by their metadata, Debian's by the
list that the Dockerfile leaves.
"""

from __future__ import annotations

import email
import re
import tarfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from build import EPOCH, BuildFailed

DEBIAN = "rootfs/usr/share/brokervol/debian-packages"
_METADATA = re.compile(r"rootfs/usr/local/lib/python3\.\d+/dist-packages/[^/]+\.dist-info/METADATA")
_NAME = re.compile("[-_.]+")  # all the same, says PEP 503


def of_plugin(archive: tarfile.TarFile, version: str) -> str:
    """The document, as JSON.

    Raises:
        BuildFailed: the archive does not say what of Debian is in it.
    """
    components = sorted([*_python(archive), *_debian(archive)], key=lambda component: str(component.purl))
    digest = uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(str(component.purl) for component in components))
    bom = Bom(components=components, serial_number=digest)
    bom.metadata.timestamp = datetime.fromtimestamp(EPOCH, UTC)
    whole = Component(
        name="brokervol-plugin", version=version, type=ComponentType.CONTAINER, bom_ref="brokervol-plugin"
    )
    bom.metadata.component = whole
    bom.register_dependency(whole, components)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _python(archive: tarfile.TarFile) -> Iterator[Component]:
    for member in archive:
        if _METADATA.fullmatch(member.name):
            content = archive.extractfile(member)
            assert content is not None  # noqa: S101 - a METADATA is a file
            head = email.message_from_bytes(content.read())
            yield _component("pypi", None, _NAME.sub("-", str(head["Name"])).lower(), str(head["Version"]))


def _debian(archive: tarfile.TarFile) -> Iterator[Component]:
    try:
        content = archive.extractfile(DEBIAN)
    except KeyError:
        content = None
    lines = content.read().decode().splitlines() if content else []
    if not lines:
        raise BuildFailed(f"{archive.name!s} does not say in {DEBIAN} which of Debian's packages are in it")
    for line in lines:
        name, version, architecture = line.split()
        yield _component("deb", "debian", name, version, {"arch": architecture, "distro": "bookworm"})


def _component(
    kind: str, namespace: str | None, name: str, version: str, qualifiers: dict[str, str] | None = None
) -> Component:
    purl = PackageURL(kind, namespace, name, version, qualifiers)
    return Component(name=name, version=version, purl=purl, bom_ref=str(purl))
