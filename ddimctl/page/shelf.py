"""What tabs keep on the server, so that more can be asked of it: by a key that nobody guesses, and not for ever."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from ddimctl.errors import UsageError
from ddimctl.page.work import Kept

MOST = 16  # things; who adds one more takes the oldest away


class Shelf:
    """One thing for each place of a tab of a browser."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], tuple[str, Kept]] = OrderedDict()

    def put(self, session: str, place: str, thing: Kept) -> str:
        """Keeps a thing instead of what was kept in that place; its key."""
        key = secrets.token_urlsafe(16)
        self._kept.pop((session, place), None)
        self._kept[session, place] = key, thing
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> Kept:
        """The thing of that key. Raises `UsageError` where it is kept no longer."""
        for known, thing in list(self._kept.values()):
            if secrets.compare_digest(known.encode(), key.encode()):
                return thing
        raise UsageError("this is no longer kept", hint="make it again")

    def drop(self, session: str) -> None:
        """Forgets what a tab kept."""
        for place in [p for p in self._kept if p[0] == session]:
            self._kept.pop(place, None)

    def __len__(self) -> int:
        return len(self._kept)
