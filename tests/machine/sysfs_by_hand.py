"""AMD and Intel GPUs by hand: the folders that Linux shows of them, below a root of the test's own."""

from __future__ import annotations

from pathlib import Path

GIB = 1 << 30
PCI_IDS = """# a few lines of it
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t744c  Navi 31 [Radeon RX 7900 XTX]
\t\t1002 0e3b  a board
8086  Intel Corporation
\t56a0  DG2 [Arc A770]
\t46a6  Alder Lake-P GT2 [Iris Xe Graphics]
"""


def _file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def _on_the_bus(root: Path, address: str, vendor: str, device: str, driver: str) -> Path:
    folder = root / "sys/bus/pci/devices" / address
    _file(folder / "vendor", vendor)
    _file(folder / "device", device)
    _file(folder / "class", "0x030000")
    if driver:
        where = root / "sys/bus/pci/drivers" / driver
        where.mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(where)
    _file(root / "usr/share/hwdata/pci.ids", PCI_IDS)
    return folder


def _node(root: Path, folder: Path, minor: int) -> None:
    """The file it is used through."""
    (folder / "drm" / f"renderD{minor}").mkdir(parents=True)
    drm = root / "sys/class/drm" / f"renderD{minor}"
    drm.mkdir(parents=True)
    (drm / "device").symlink_to(folder)
    _file(root / f"dev/dri/renderD{minor}", "")


def amd(
    root: Path,
    number: int = 0,
    *,
    total: int = 16 * GIB,
    used: int = GIB,
    target: int = 110000,
    shared: int = 0,
    product: str = "",
    driver: str = "amdgpu",
    compute: bool = True,
) -> Path:
    """A GPU, as KFD's node `number + 1`; `shared`: bytes of the host that it may use. Gives its folder."""
    folder = _on_the_bus(root, f"0000:{number + 3:02x}:00.0", "0x1002", "0x744c", driver)
    _file(folder / "mem_info_vram_total", str(total))
    _file(folder / "mem_info_vram_used", str(used))
    _file(folder / "mem_info_gtt_used", str(2 * GIB))
    _file(folder / "product_name", product)
    if not compute:
        return folder
    _node(root, folder, 128 + number)
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    _file(nodes / "0" / "properties", "cpu_cores_count 12\ngfx_target_version 0")
    facts = f"gfx_target_version {target}\ndrm_render_minor {128 + number}\nunique_id {0xABC0 + number}"
    _file(nodes / f"{number + 1}" / "properties", facts)
    bank = f"heap_type 1\nsize_in_bytes {total + shared}"
    _file(nodes / f"{number + 1}" / "mem_banks" / "0" / "properties", bank)
    _file(root / "dev/kfd", "")
    return folder


def intel(root: Path, number: int = 0, *, integrated: bool = False, driver: str = "xe") -> Path:
    address = "0000:00:02.0" if integrated else f"0000:{number + 3:02x}:00.0"
    folder = _on_the_bus(root, address, "0x8086", "0x46a6" if integrated else "0x56a0", driver)
    if driver:
        _node(root, folder, 128 + number)
    return folder
