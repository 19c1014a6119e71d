# SPDX-License-Identifier: Apache-2.0
"""Users, their sessions and login tokens, and who may do what."""

from __future__ import annotations

import secrets

from lab.oned import documents
from lab.oned.core import Core
from lab.oned.errors import Code, RefusedError
from lab.oned.model import Owner, User

__all__ = ["Users", "require"]


def require(user: User, owner: Owner | None, right: str, kind: str, object_id: int) -> None:
    """Refuse what is neither an administrator's nor the owner's to do."""
    if user.is_admin or (owner is not None and owner.uid == user.id):
        return
    text = f"User [{user.id}] : Not authorized to perform {right} {kind} [{object_id}]."
    raise RefusedError(Code.AUTHORIZATION, text)


class Users:
    """Requests about users."""

    def __init__(self, core: Core) -> None:
        self.core = core
        core.users[0] = User(0, "oneadmin", core.config.password, 0, "oneadmin")
        core.users[1] = User(1, "serveradmin", secrets.token_hex(16), 0, "oneadmin")
        for number, (name, password) in enumerate(core.config.users.items(), start=2):
            core.users[number] = User(number, name, password, 1, "users")

    def authenticate(self, session: str) -> User:
        """Give the user of ``name:password`` or ``name:token``."""
        name, colon, secret = session.partition(":")
        now = self.core.now()
        with self.core.lock:
            for user in self.core.users.values():
                if user.name != name or not colon:
                    continue
                expiry = user.tokens.get(secret)
                if secrets.compare_digest(user.password.encode(), secret.encode()):
                    return user
                if expiry is not None and (expiry == -1 or now <= expiry):
                    return user
        raise RefusedError(Code.AUTHENTICATION, "User couldn't be authenticated, aborting call.")

    def login(self, user: User, name: str, token: str, seconds: int, _group: int = -1) -> str:
        """Make a login token that lives for ``seconds`` (-1: for ever), or revoke ``token`` (0)."""
        core = self.core
        with core.lock:
            subject = next((u for u in core.users.values() if u.name == name), None)
            if subject is None:
                raise RefusedError(Code.NO_EXISTS, f"Error getting user [{name}].")
            require(user, Owner(uid=subject.id), "MANAGE", "USER", subject.id)
            if seconds == 0:
                if token and token not in subject.tokens:
                    raise RefusedError(Code.INTERNAL, "Could not find token to reset")
                for each in [token] if token else list(subject.tokens):
                    del subject.tokens[each]
                return token
            made = token or secrets.token_hex(32)
            subject.tokens[made] = -1 if seconds < 0 else core.now() + seconds
            return made

    def info(self, user: User, user_id: int = -1, _decrypt: bool = False) -> str:
        """Give the XML of a user, -1 for the one who asks."""
        with self.core.lock:
            subject = self.core.users.get(user.id if user_id == -1 else user_id)
            if subject is None:
                raise RefusedError(Code.NO_EXISTS, f"Error getting user [{user_id}].", user_id)
            require(user, Owner(uid=subject.id), "USE", "USER", subject.id)
            return documents.user_xml(subject)
