"""Images that came with requests, as files: generate starts from files too, and a resumed run reads them again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from sdcli.errors import BadFile
from sdcli.files import REAL, replace_whole

_BEGINNINGS = {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff", "webp": b"RIFF"}


def kept(upload: Callable[[bytes], str], content: bytes, name: str, given: dict[str, str]) -> str:
    """The path of an image, which `given` takes in with what the request calls it."""
    try:
        path = upload(content)
    except BadFile as error:
        raise BadFile(f"{name}: {error.message}", hint=error.hint, field=name) from None
    given[path] = name
    return path


class Uploads:
    def __init__(self, folder: Path, keep: float) -> None:
        """`keep`: seconds after its last use in which an image may still be needed."""
        self.folder = folder
        self.keep = keep

    def path_of(self, content: bytes) -> str:
        """Where it is from now on. What it holds is looked at when it is planned for; here it only has to begin like an
        image."""
        kind = next((kind for kind, start in _BEGINNINGS.items() if content.startswith(start)), None)
        if kind is None:
            raise BadFile("an image has to be a PNG, JPEG or WebP file", hint="another file")
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:16]}.{kind}"
        if path.exists():
            path.touch()
        else:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tidy()
            replace_whole(REAL, path, [content])
        return str(path)

    def _tidy(self) -> None:
        for path in self.folder.iterdir():
            if time.time() - path.stat().st_mtime > self.keep:
                path.unlink(missing_ok=True)
