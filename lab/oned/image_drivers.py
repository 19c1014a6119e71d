# SPDX-License-Identifier: Apache-2.0
"""What the image manager asks of datastore drivers, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Callable

from lab.oned import documents, elements
from lab.oned.core import Core
from lab.oned.datastores import Datastores
from lab.oned.drivers import Answer
from lab.oned.model import Datastore, Image
from lab.oned.states import ImageState
from lab.oned.templates import Template

__all__ = ["ImageDrivers"]


class ImageDrivers:
    """Datastore actions for images; those that take long run in the background."""

    def __init__(self, core: Core, datastores: Datastores) -> None:
        self.core = core
        self.datastores = datastores

    def _document(self, image: str, datastore: Datastore, *extra: str) -> str:
        return documents.datastore_action(image, self.datastores.document(datastore, is_plain=True), *extra)

    def _run(self, datastore: Datastore, action: str, request: int, document: str) -> Answer:
        with self.core.drivers.slot("datastore"):
            return self.core.drivers.run(
                "datastore", datastore.ds_mad, action, (str(request),), document, "base64"
            )

    def stat(self, path: str, datastore: Datastore, is_cdrom: bool) -> Answer:
        """Ask for the size of PATH; the request waits for it."""
        with self.core.lock:
            size = "" if is_cdrom or self.core.config.version < (7, 4) else "<SIZE></SIZE>"
            image = f"<IMAGE>{elements.element('PATH', path)}{size}</IMAGE>"
            document = self._document(image, datastore)
        return self._run(datastore, "stat", self.core.next_id("SYNC"), document)

    def _register(self, image: Image, datastore: Datastore, *extra: str) -> str:
        """Keep a new image and give the document for its making, which does not count it yet."""
        with self.core.lock:
            document = self._document(documents.image_xml(image), datastore, *extra)
            self.core.images[image.id] = image
            datastore.images.append(image.id)
            self.core.lock.notify_all()
        return document

    def _fail(self, image: Image, text: str, stderr: str) -> None:
        reason = self.core.error_text(stderr)
        self.core.set_image_error(image, f"{text}: {reason}" if reason else text)
        self.core.announce_image(image, ImageState.ERROR)

    def create(
        self, image: Image, datastore: Datastore, has_path: bool, then: Callable[[bool], None] | None = None
    ) -> None:
        """Fill a new image from PATH (cp) or make an empty one (mkfs).

        ``then``, called with the success, goes on with an image that stays locked.
        """
        document = self._register(image, datastore)

        def work() -> None:
            if has_path:
                self._cp(image, datastore, document)
            else:
                is_made = self._mkfs(image, datastore, document, is_locked=then is not None)
                if then is not None:
                    then(is_made)
            self.datastores.monitor_soon(datastore.id)

        self.core.spawn(work, f"create-{image.id}")

    def _cp(self, image: Image, datastore: Datastore, document: str) -> None:
        answer = self._run(datastore, "cp", image.id, document)
        words = answer.stdout.split()
        if answer.rc:
            self._fail(image, "Error copying image in the datastore", answer.stderr)
            return
        with self.core.lock:
            image.source = words[0] if words else "-"
            image.format = words[1] if len(words) > 1 else ""
        if len(words) < 2:
            self._fail(image, "CP operation succeeded but image FORMAT was not returned.", "")
            return
        self.core.announce_image(image, ImageState.READY)

    def _mkfs(self, image: Image, datastore: Datastore, document: str, is_locked: bool) -> bool:
        answer = self._run(datastore, "mkfs", image.id, document)
        if answer.rc:
            self._fail(image, "Error creating datablock", answer.stderr)
            return False
        with self.core.lock:
            image.source = answer.stdout.strip() or "-"
        self.core.announce_image(image, ImageState.LOCKED if is_locked else ImageState.READY)
        return True

    def clone(self, image: Image, origin: Image, target: Datastore, source: Datastore) -> None:
        """Copy ``origin`` to a new image."""
        extra: tuple[str, ...] = ()
        if source is not target:
            extra = (elements.element("SOURCE_BRIDGE_LIST", source.template.get("BRIDGE_LIST")),)
        document = self._register(image, target, *extra)

        def work() -> None:
            answer = self._run(target, "clone", image.id, document)
            words = answer.stdout.split()
            with self.core.lock:
                image.cloning_id = -1
            if answer.rc:
                self._fail(image, f"Error cloning from Image {origin.id}", answer.stderr)
            else:
                with self.core.lock:
                    image.source = words[0] if words else "-"
                    image.format = words[1] if len(words) > 1 else image.format
                self.core.announce_image(image, ImageState.READY)
            with self.core.lock:
                origin.clones.remove(image.id)
                is_free = not origin.clones and not origin.vms
            if is_free:
                self.core.enter_image(origin, ImageState.READY)
            self.datastores.monitor_soon(target.id)

        self.core.spawn(work, f"clone-{image.id}")

    def drop(self, image: Image) -> None:
        """Forget an image."""
        core = self.core
        with core.lock:
            core.images.pop(image.id, None)
            datastore = core.datastores.get(image.datastore_id)
            if datastore is not None and image.id in datastore.images:
                datastore.images.remove(image.id)
            for vm in core.vms.values():
                if image.id in vm.backups.ids:
                    vm.backups.ids.remove(image.id)
            core.lock.notify_all()

    def remove(self, image: Image, is_forced: bool) -> None:
        """Let the driver remove an image, then forget it; forced: also when the driver fails."""
        with self.core.lock:
            datastore = self.core.get_datastore(image.datastore_id)
            document = self._document(documents.image_xml(image), datastore)
        self.core.enter_image(image, ImageState.DELETE)

        def work() -> None:
            answer = self._run(datastore, "rm", image.id, document)
            if answer.rc and not is_forced:
                self.core.set_image_error(
                    image,
                    "Error removing image from datastore. Retry the operation or manually remove "
                    "image source  and run the delete --force operation to completely delete the image",
                )
                self.core.enter_image(image, ImageState.ERROR)
            else:
                self.drop(image)
            self.datastores.monitor_soon(datastore.id)

        self.core.spawn(work, f"remove-{image.id}")

    def snapshot(self, image: Image, snapshot_id: int, action: str) -> None:
        """Delete, revert to, or flatten a snapshot of an image."""
        verbs = {
            "snap_delete": f"Error removing snapshot {snapshot_id} from image {image.id}",
            "snap_revert": f"Error reverting image {image.id} to snapshot {snapshot_id}",
            "snap_flatten": f"Error flattening snapshot {snapshot_id} of image {image.id}",
        }
        with self.core.lock:
            datastore = self.core.get_datastore(image.datastore_id)
            document = self._document(documents.image_xml(image), datastore)
        self.core.enter_image(image, ImageState.LOCKED)

        def work() -> None:
            answer = self._run(datastore, action, image.id, document)
            with self.core.lock:
                image.target_snapshot = -1
                if not answer.rc:
                    _apply_snapshot(image, snapshot_id, action)
            if answer.rc:
                reason = self.core.error_text(answer.stderr)
                self.core.set_image_error(image, f"{verbs[action]}: {reason}" if reason else verbs[action])
            self.core.enter_image(image, ImageState.READY)
            self.datastores.monitor_soon(datastore.id)

        self.core.spawn(work, f"{action}-{image.id}")

    def restore(self, image: Image, datastore_id: int, options: Template) -> Answer:
        """Let a backup driver make images of a backup."""
        with self.core.lock:
            datastore = self.core.get_datastore(image.datastore_id)
            document = self._document(
                documents.image_xml(image),
                datastore,
                elements.element("DESTINATION_DS_ID", datastore_id),
                elements.template_xml(options),
            )
        return self._run(datastore, "restore", self.core.next_id("SYNC"), document)

    def flatten_increments(self, image: Image, keep_last: int) -> Answer:
        """Let a backup driver join the oldest increments; the image is locked meanwhile."""
        with self.core.lock:
            datastore = self.core.get_datastore(image.datastore_id)
            extra = f"<EXTRA_DATA>{elements.element('KEEP_LAST', keep_last)}</EXTRA_DATA>"
            document = self._document(documents.image_xml(image), datastore, extra)
        self.core.enter_image(image, ImageState.LOCKED)
        return self._run(datastore, "increment_flatten", image.id, document)


def _apply_snapshot(image: Image, snapshot_id: int, action: str) -> None:
    if action == "snap_delete":
        image.snapshots.items = [s for s in image.snapshots.items if s.id != snapshot_id]
    elif action == "snap_flatten":
        image.snapshots.items = []
    else:
        image.snapshots.activate(snapshot_id)
