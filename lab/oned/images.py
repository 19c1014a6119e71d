# SPDX-License-Identifier: Apache-2.0
"""Images: requests about them."""

from __future__ import annotations

from lab.oned import documents
from lab.oned.core import Core
from lab.oned.datastores import Datastores
from lab.oned.errors import Code, RefusedError
from lab.oned.image_drivers import ImageDrivers
from lab.oned.model import IMAGE_TYPES, Datastore, Image, User
from lab.oned.states import ImageState
from lab.oned.templates import Template, TemplateError, parse
from lab.oned.users import require

__all__ = ["Images"]

_FORBIDDEN = "&|:\\\";/'#{}$<>`"
_REMOVED = ("NAME", "TYPE", "PATH", "SIZE", "PERSISTENT", "SOURCE", "FORMAT", "FS", "DRIVER")


class Images:
    """Requests about images."""

    def __init__(self, core: Core, datastores: Datastores, drivers: ImageDrivers) -> None:
        self.core = core
        self.datastores = datastores
        self.drivers = drivers

    # -- making

    def allocate(self, user: User, text: str, datastore_id: int, no_check_capacity: bool = False) -> int:
        """Make an image from PATH, as an empty datablock, or of a volume that is there (SOURCE)."""
        core = self.core
        try:
            template = parse(text)
        except TemplateError as error:
            raise RefusedError(Code.INTERNAL, f"Cannot parse image template. {error}") from error
        with core.lock:
            datastore = core.get_datastore(datastore_id)
            if datastore.type != 0:
                raise RefusedError(Code.INTERNAL, "New images can only be created in an IMAGE_DS.")
            self._check_name(template.get("NAME"), user)
        size = self._size(template, datastore)
        if not user.is_admin and size > datastore.free_mb:
            raise RefusedError(Code.ACTION, "Not enough space in datastore")
        with core.lock:
            self._check_name(template.get("NAME"), user)
            image = self._new(user, template, datastore, size)
            if template.get("SOURCE"):
                core.images[image.id] = image
                datastore.images.append(image.id)
                core.announce_image(image, ImageState.READY)
                return image.id
        self.drivers.create(image, datastore, has_path=bool(image.path))
        return image.id

    def _check_name(self, name: str, user: User) -> None:
        if not name:
            raise RefusedError(Code.INTERNAL, "No NAME in template for Image.")
        if set(name) & set(_FORBIDDEN):
            raise RefusedError(Code.INTERNAL, "Invalid NAME, it contains forbidden characters.")
        for other in self.core.images.values():
            if other.name == name and other.owner.uid == user.id:
                raise RefusedError(Code.INTERNAL, f"NAME is already taken by IMAGE {other.id}.")

    def _size(self, template: Template, datastore: Datastore) -> int:
        """Give the size that was asked for, or what the driver says of PATH, MiB."""
        size = template.get("SIZE")
        path = template.get("PATH")
        if not size and path:
            answer = self.drivers.stat(path, datastore, template.get("TYPE").upper() == "CDROM")
            if answer.rc:
                reason = self.core.error_text(answer.stderr)
                raise RefusedError(Code.INTERNAL, f"Cannot parse image SIZE: {reason}")
            size = answer.stdout.strip()
        if not size.isdigit():
            reason = "Wrong number or missing SIZE attribute."
            raise RefusedError(Code.INTERNAL, f"Cannot parse image SIZE: {reason}")
        return int(size)

    def _new(self, user: User, given: Template, datastore: Datastore, size: int) -> Image:
        template = given.copy()
        kind = template.get("TYPE", "OS").upper()
        if kind not in IMAGE_TYPES:
            raise RefusedError(Code.INTERNAL, f"Unknown type {kind} in template.")
        path, source = template.get("PATH"), template.get("SOURCE")
        wanted = template.get("FORMAT") or template.get("DRIVER")
        driver = datastore.template.get("DRIVER")
        is_empty = kind == "DATABLOCK" and not path and not source
        for name in _REMOVED:
            template.remove(name)
        if kind != "CDROM":
            template.values.setdefault("DEV_PREFIX", ["sd"])
        image_format = driver or wanted or "raw" if is_empty else template.get("FORMAT") or wanted
        if path and not source:
            image_format = ""
        elif is_empty:
            template.set("DRIVER", image_format)
        return Image(
            id=self.core.next_id("IMAGE"),
            name=given.get("NAME"),
            owner=self.core.owner(user),
            type=IMAGE_TYPES.index(kind),
            disk_type=datastore.disk_type,
            datastore_id=datastore.id,
            datastore=datastore.name,
            template=template,
            regtime=self.core.now(),
            is_persistent=given.get("PERSISTENT").upper() == "YES",
            source=source,
            path=path,
            format=image_format,
            fs=given.get("FS"),
            size=size,
        )

    def clone(self, user: User, image_id: int, name: str, datastore_id: int = -1) -> int:
        """Copy an image, within its datastore or to another one of the same driver."""
        core = self.core
        with core.lock:
            origin = core.get_image(image_id)
            require(user, origin.owner, "USE", "IMAGE", image_id)
            source = core.get_datastore(origin.datastore_id)
            target = core.get_datastore(origin.datastore_id if datastore_id == -1 else datastore_id)
            if origin.snapshots.items:
                raise RefusedError(Code.ACTION, "Cannot clone images with snapshots")
            if target.ds_mad != source.ds_mad:
                raise RefusedError(Code.ACTION, "Clone only supported within the same DS_MAD")
            if not user.is_admin and origin.size > target.free_mb:
                raise RefusedError(Code.ACTION, "Not enough space in datastore")
            self._check_name(name, user)
            if origin.state not in (ImageState.READY, ImageState.CLONE, ImageState.USED):
                state = origin.state.event_name
                raise RefusedError(Code.ACTION, f"Cannot clone image in state: {state}")
            template = origin.template.copy()
            template.remove("ERROR")
            image = Image(
                id=core.next_id("IMAGE"),
                name=name,
                owner=core.owner(user),
                type=origin.type,
                disk_type=target.disk_type,
                datastore_id=target.id,
                datastore=target.name,
                template=template,
                regtime=core.now(),
                path=origin.source,
                format=origin.format,
                fs=origin.fs,
                size=origin.size,
                cloning_id=origin.id,
            )
            origin.clones.append(image.id)
        if origin.state is ImageState.READY:
            core.enter_image(origin, ImageState.CLONE)
        self.drivers.clone(image, origin, target, source)
        return image.id

    # -- removing

    def delete(self, user: User, image_id: int, is_forced: bool = False) -> int:
        """Remove an image and what the driver keeps of it."""
        core = self.core
        with core.lock:
            image = core.get_image(image_id)
            require(user, image.owner, "MANAGE", "IMAGE", image_id)
            is_backup = image.type == IMAGE_TYPES.index("BACKUP")
            if image.clones:
                reason = f"There are {len(image.clones)} active clone operations."
                raise RefusedError(Code.ACTION, f"Cannot delete image. {reason}")
            if image.vms and not is_backup:
                reason = f"There are {len(image.vms)} VMs using it."
                raise RefusedError(Code.ACTION, f"Cannot delete image. {reason}")
            if image.state is ImageState.LOCKED and not is_forced:
                raise RefusedError(
                    Code.INTERNAL,
                    "Image locked, use --force flag to remove the image. "
                    "Force delete may leave some files on Datastore",
                    image_id,
                )
            if not image.source:
                self.drivers.drop(image)
                return image_id
            if is_forced:
                image.template.set("FORCE_DELETE", "YES")
        self.drivers.remove(image, is_forced)
        return image_id

    # -- showing

    def info(self, user: User, image_id: int, _decrypt: bool = False) -> str:
        """Give the XML of an image."""
        with self.core.lock:
            image = self.core.get_image(image_id)
            require(user, image.owner, "USE", "IMAGE", image_id)
            return documents.image_xml(image)

    def pool(self, user: User, whose: int = -2, start: int = -1, end: int = -1) -> str:
        """Give the XML of images, the newest first: all (-2), or those of one user."""
        with self.core.lock:
            shown = [
                image
                for image in sorted(self.core.images.values(), key=lambda i: -i.id)
                if (user.is_admin and whose == -2) or image.owner.uid == (user.id if whose < 0 else whose)
            ]
            if start >= 0:
                shown = [image for image in shown if start <= image.id and (end < 0 or image.id <= end)]
            return documents.pool_xml("IMAGE", map(documents.image_xml, shown))

    # -- changing, without a driver

    def persistent(self, user: User, image_id: int, is_persistent: bool) -> int:
        """Make an image persistent or not."""
        with self.core.lock:
            image = self._managed(user, image_id)
            word = "persistent" if is_persistent else "non-persistent"
            if not is_persistent and image.snapshots.items:
                reason = "Image has snapshots."
            elif image.state in (ImageState.USED, ImageState.CLONE, ImageState.USED_PERS):
                reason = f"Image cannot be in state {image.state.event_name}."
            else:
                image.is_persistent = is_persistent
                return image_id
            raise RefusedError(Code.INTERNAL, f"Could not make image {word}: {reason}")

    def enable(self, user: User, image_id: int, is_enabled: bool) -> int:
        """Enable an image, also one in ERROR, or disable it."""
        with self.core.lock:
            image = self._managed(user, image_id)
            allowed = (ImageState.READY, ImageState.DISABLED, ImageState.ERROR)
            if image.state not in allowed:
                text = f"Image cannot be in state {image.state.event_name}."
                raise RefusedError(Code.INTERNAL, f"Could not enable image: {text}")
        self.core.enter_image(image, ImageState.READY if is_enabled else ImageState.DISABLED)
        return image_id

    def chtype(self, user: User, image_id: int, kind: str) -> int:
        """Give an image another type."""
        with self.core.lock:
            image = self._managed(user, image_id)
            if kind.upper() not in IMAGE_TYPES[:3]:
                raise RefusedError(Code.INTERNAL, f"Unknown type {kind}")
            image.type = IMAGE_TYPES.index(kind.upper())
        return image_id

    def rename(self, user: User, image_id: int, name: str) -> int:
        """Give an image another name."""
        with self.core.lock:
            image = self._managed(user, image_id)
            self._check_name(name, user)
            image.name = name
        return image_id

    def update(self, user: User, image_id: int, text: str, merge: int = 0) -> int:
        """Replace (0) or extend (1) the template of an image."""
        with self.core.lock:
            image = self._managed(user, image_id)
            try:
                change = parse(text)
            except TemplateError as error:
                raise RefusedError(Code.INTERNAL, f"Cannot update template. {error}") from error
            new = image.template.copy() if merge else Template()
            new.merge(change)
            image.template = new
        return image_id

    # -- snapshots and backups

    def snapshot_delete(self, user: User, image_id: int, snapshot_id: int) -> int:
        """Delete a snapshot of an image that no VM has."""
        return self._snapshot(user, image_id, snapshot_id, "snap_delete")

    def snapshot_revert(self, user: User, image_id: int, snapshot_id: int) -> int:
        """Take an image back to a snapshot."""
        return self._snapshot(user, image_id, snapshot_id, "snap_revert")

    def snapshot_flatten(self, user: User, image_id: int, snapshot_id: int) -> int:
        """Take an image back to a snapshot and delete all its snapshots."""
        return self._snapshot(user, image_id, snapshot_id, "snap_flatten")

    def _snapshot(self, user: User, image_id: int, snapshot_id: int, action: str) -> int:
        with self.core.lock:
            image = self._managed(user, image_id)
            if image.snapshots.find(snapshot_id) is None:
                raise RefusedError(Code.ACTION, "Snapshot does not exist")
            if image.state is not ImageState.READY:
                text = f"Image cannot be in state {image.state.event_name}."
                raise RefusedError(Code.ACTION, text)
            image.target_snapshot = snapshot_id
        self.drivers.snapshot(image, snapshot_id, action)
        return image_id

    def restore(self, user: User, image_id: int, datastore_id: int, options: str) -> str:
        """Make images and a template of a backup; gives what the driver says."""
        with self.core.lock:
            image = self._managed(user, image_id)
            self.core.get_datastore(datastore_id)
            template = parse(options)
            template.set("USERNAME", user.name)
        answer = self.drivers.restore(image, datastore_id, template)
        if answer.rc:
            reason = self.core.error_text(answer.stderr)
            raise RefusedError(Code.ACTION, f"Cannot restore backup: {reason}")
        return answer.stdout.strip()

    def _managed(self, user: User, image_id: int) -> Image:
        image = self.core.get_image(image_id)
        require(user, image.owner, "MANAGE", "IMAGE", image_id)
        return image
