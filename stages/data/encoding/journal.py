"""The folder in which token files grow, and the journal of what in it is complete.

The folder `.preparing` lies in the prepared directory. Its journal has the key of the preparation: a hash of the texts,
the settings and the version of this format. A folder with another key, or a damaged one, is begun anew.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from threadloom.stages.data.encoding.split_files import SplitProgress
from threadloom.stages.storage import atomic_write, make_directory

VERSION = 1
"""Number of the format; it changes whenever units or batches do."""
FOLDER = ".preparing"
_JOURNAL = "journal.json"


class Journal(msgspec.Struct, kw_only=True):
    """The content of the journal."""

    key: str
    batches: int = 0
    """Batches whose tokens are complete."""
    characters: int = 0
    """Their characters."""
    splits: list[SplitProgress] = []


class PreparationFolder:
    """The folder of an unfinished preparation. One process at a time may use it."""

    def __init__(self, directory: Path, key_parts: Sequence[object]) -> None:
        """`key_parts` are all values that the tokens depend on."""
        content = msgspec.json.encode([VERSION, *key_parts])
        self.path, self.key = directory / FOLDER, hashlib.sha256(content).hexdigest()

    def begin(self) -> Journal:
        """Return the journal of a preparation that was begun, or an empty one in an empty folder; raises OSError."""
        try:
            found = msgspec.json.decode((self.path / _JOURNAL).read_bytes(), type=Journal)
            if found.key == self.key:
                return found
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            pass
        self.remove()
        make_directory(self.path)
        journal = Journal(key=self.key)
        self.commit(journal)
        return journal

    def commit(self, journal: Journal) -> None:
        """Write the journal; the files that it describes are on the disk. Raises OSError."""
        atomic_write(self.path / _JOURNAL, msgspec.json.encode(journal))

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
