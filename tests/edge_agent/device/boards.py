"""Sysfs trees of boards, as their kernels show them (JetPack 6 and 7), for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_ORIN_ZONES = {
    "cpu-thermal": "51531",
    "gpu-thermal": "49718",
    "cv0-thermal": None,  # switched off: reading gives EAGAIN, an empty file here
    "soc0-thermal": "48906",
    "tj-thermal": "51531",
}
_NVPMODEL = (
    "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n"
)


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below a folder, and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def orin_nano(root: Path) -> Path:
    """Orin Nano and NX: one INA3221, whose first channel is the whole module's."""
    return write(
        root,
        {
            **_ina3221("1-0040", 1, ("VDD_IN", "5056", "1480"), ("VDD_CPU_GPU_CV", "5056", "480"),
                       ("VDD_SOC", "5048", "312")),
            **_thermal(_ORIN_ZONES),
            **_cooling({"pwm-fan": "3", "cpufreq-cpu0": "0", "devfreq-17000000.gpu": "0"}),
            "sys/class/devfreq/17000000.gpu/cur_freq": "611999939",
            "var/lib/nvpmodel/status": "pmode:0001",
            "etc/nvpmodel.conf": _NVPMODEL,
        },
    )  # fmt: skip


def agx_orin(root: Path) -> Path:
    """AGX Orin: two INA3221 and no rail of the whole; one rail feeds another that is measured."""
    return write(
        root,
        {
            **_ina3221("1-0040", 3, ("VDD_GPU_SOC", "19864", "200"), ("VDD_CPU_CV", "19864", "100"),
                       ("VIN_SYS_5V0", "5032", "1000")),
            **_ina3221("1-0041", 4, ("NC", "5000", "0"), ("VDDQ_VDD2_1V8AO", "5032", "400"),
                       ("NC", "0", "0")),
            **_thermal(_ORIN_ZONES),
            "var/lib/nvpmodel/status": "pmode:0003",
            "etc/nvpmodel.conf": _NVPMODEL,
        },
    )  # fmt: skip


def thor(root: Path) -> Path:
    """Thor: an INA238 for the whole module beside an INA3221."""
    chip = "sys/bus/i2c/devices/2-0044"
    return write(
        root,
        {
            f"{chip}/name": "ina238",
            f"{chip}/hwmon/hwmon6/name": "ina238",
            f"{chip}/hwmon/hwmon6/in0_input": "1",
            f"{chip}/hwmon/hwmon6/in1_input": "19960",
            f"{chip}/hwmon/hwmon6/curr1_input": "1750",
            **_ina3221("2-0040", 5, ("VDD_GPU", "19960", "410"),
                       ("VDD_CPU_SOC_MSS", "19960", "305"), ("VIN_SYS_5V0", "5040", "880")),
            **_thermal({"cpu-thermal": "45000", "gpu-thermal": "44000", "tj-thermal": "46500"}),
            "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
            "var/lib/nvpmodel/status": "pmode:0000",
        },
    )  # fmt: skip


def plain(root: Path) -> Path:
    """A board without power monitors and modes."""
    return write(root, _thermal({"acpitz": "38000"}))


def _ina3221(address: str, number: int, *channels: tuple[str, str, str]) -> dict[str, str]:
    chip = f"sys/bus/i2c/devices/{address}"
    hwmon = f"{chip}/hwmon/hwmon{number}"
    files = {f"{chip}/name": "ina3221", f"{hwmon}/name": "ina3221"}
    for place, (label, millivolts, milliamperes) in enumerate(channels, 1):
        files[f"{hwmon}/in{place}_label"] = label
        files[f"{hwmon}/in{place}_enable"] = "1"
        files[f"{hwmon}/in{place}_input"] = millivolts
        files[f"{hwmon}/curr{place}_input"] = milliamperes
        files[f"{hwmon}/in{place + 3}_input"] = "3"
    files[f"{hwmon}/in7_label"] = "sum of shunt voltages"
    files[f"{hwmon}/in7_input"] = "15"
    files[f"{hwmon}/curr4_input"] = "99999"
    return files


def _thermal(zones: Mapping[str, str | None]) -> dict[str, str]:
    files: dict[str, str] = {}
    for place, (kind, millidegrees) in enumerate(zones.items()):
        zone = f"sys/devices/virtual/thermal/thermal_zone{place}"
        files[f"{zone}/type"] = kind
        files[f"{zone}/temp"] = millidegrees or ""
    return files


def _cooling(devices: Mapping[str, str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for place, (kind, state) in enumerate(devices.items()):
        device = f"sys/devices/virtual/thermal/cooling_device{place}"
        files[f"{device}/type"] = kind
        files[f"{device}/cur_state"] = state
    return files
