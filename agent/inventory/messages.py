"""PCI functions as the contract has them."""

from __future__ import annotations

from collections.abc import Iterable

from gpupool.v1 import inventory_pb2

from .bars import Bar
from .pci import Function


def function_message(
    function: Function, *, reset_domain: Iterable[str] = (), names: tuple[str, str] = ("", "")
) -> inventory_pb2.PciFunction:
    """The function, with what it takes its neighbours to know, and the names of its vendor and device."""
    return inventory_pb2.PciFunction(
        address=function.address,
        vendor_id=function.vendor_id,
        device_id=function.device_id,
        class_code=max(function.class_code, 0),
        driver=function.driver,
        iommu_group=function.iommu_group,
        numa_node=function.numa_node,
        reset_methods=function.reset_methods,
        largest_bar_bytes=function.largest_bar_bytes,
        link_speed_mts=function.link_speed_mts,
        link_width=function.link_width,
        boot_vga=function.boot_vga,
        bars=[_bar_message(bar) for bar in function.bars],
        link_speed_max_mts=function.link_speed_max_mts,
        link_width_max=function.link_width_max,
        path=function.path,
        root_bus=function.root_bus,
        sriov_total=function.sriov_total,
        sriov_present=function.sriov_present,
        physical_function=function.physical_function,
        mdev_types=function.mdev_types,
        vendor_name=names[0],
        device_name=names[1],
        subsystem_vendor_id=function.subsystem_vendor_id,
        subsystem_device_id=function.subsystem_device_id,
        serial=function.serial,
        power_state=function.power_state,
        reset_domain=reset_domain,
    )


def _bar_message(bar: Bar) -> inventory_pb2.Bar:
    return inventory_pb2.Bar(
        index=bar.index,
        bytes=bar.size_bytes,
        address=bar.address,
        is_64bit=bar.is_64bit,
        prefetchable=bar.prefetchable,
    )
