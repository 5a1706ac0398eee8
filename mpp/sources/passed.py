"""What a listing passed over, counted by the extensions of the names."""

from collections import Counter
from dataclasses import dataclass, field

from mpp.sources.files import printable
from mpp.sources.nested import NOT_READ

MOST_KINDS = 50  # that are told apart
SHOWN = 5
LONGEST = 12  # characters of an extension


@dataclass
class PassedOver:
    """Counts files that are no images of a source."""

    kinds: Counter[str] = field(default_factory=Counter)
    archive: str | None = None

    def clear(self) -> None:
        """Begin again."""
        self.kinds.clear()
        self.archive = None

    def add(self, name: str) -> None:
        """Count one file."""
        kind = next((suffix for suffix in NOT_READ if name.lower().endswith(suffix)), None)
        if kind is not None:
            self.archive = self.archive or name
        stem, _, extension = name.rpartition("/")[2].rpartition(".")
        kind = kind or (f".{extension.lower()}" if stem and 0 < len(extension) <= LONGEST else "no extension")
        self.kinds[kind if kind in self.kinds or len(self.kinds) < MOST_KINDS else "others"] += 1

    def words(self) -> str:
        """Say how many there were and of what kinds, nothing where there were none."""
        if not self.kinds:
            return ""
        count, shown = sum(self.kinds.values()), sorted(self.kinds.items(), key=lambda item: (-item[1], item[0]))
        kinds = ", ".join(f"{printable(kind)} {number:,}" for kind, number in shown[:SHOWN])
        more = ", ..." if len(shown) > SHOWN else ""
        unread = f", of which {printable(self.archive)} is an archive that is not read" if self.archive else ""
        return f"; passed over: {count:,} file{'s' * (count > 1)} ({kinds}{more}){unread}"
