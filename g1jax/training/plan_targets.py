"""Accelerators that programs can be compiled for on a machine that has none, and their memory."""

import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from g1jax.errors import ConfigError, unknown


@dataclass(frozen=True)
class Target:
    """Some devices of one kind."""

    name: str
    num_devices: int
    memory: int
    """Bytes of a device."""
    platform: str
    """`cuda` or `tpu`."""
    topology: str
    """The name of the slice, of GPUs their number."""
    num_slices: int = 1

    def devices(self) -> list[jax.Device]:
        """The devices, to be compiled for; they cannot run anything.

        Raises:
            ConfigError: the compiler for them is not installed.
        """
        extra = {"cuda": "plan-gpu", "tpu": "plan-tpu"}[self.platform]
        try:
            if self.platform == "cuda":
                config, topology = _gpu_config(self), f"1x1x{self.num_devices}"
                found = topologies.get_topology_desc("", "cuda", target_config=config, topology=topology)
            else:
                several = {"num_slices": self.num_slices} if self.num_slices > 1 else {}
                found = topologies.get_topology_desc(self.topology, "tpu", **several)
        except Exception as error:  # of several kinds, by plugin and version
            line = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"{self.name}: cannot compile for it here ({line}): pip install 'g1jax[{extra}]' in an environment of "
                "its own"
            ) from error
        return list(found.devices[: self.num_devices])


_GIB = 2**30
_GPUS = {  # memory as the driver reports it, bytes a second, L2 cache, name
    "h100": (84_942_979_072, 3_352_320_000_000, 52_428_800, "NVIDIA H100 80GB HBM3"),
    "h200": (150_754_820_096, 4_916_736_000_000, 62_914_560, "NVIDIA H200"),
}
_TPUS = {  # memory, cores of a chip that count as devices in a slice's name, and slices by the number of chips
    "v5e": (16 * _GIB, 1, {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}),
    "v6e": (32 * _GIB, 1, {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}),
    "v5p": (95 * _GIB, 2, {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}),
}


def target_of(name: str) -> Target:
    """The target of a name: `h100x8` and `h200x1` are GPUs of one machine; `v5e-8`, `v6e-8` and `v5p-8` TPU slices.

    `v5e-8x2` is two slices. A v5p slice is named, as Google names it, by its cores, of which a chip, which is one
    device, has two.

    Raises:
        ConfigError: an unknown kind or size.
    """
    gpu, tpu = re.fullmatch(r"(h\d+)(?:x(\d+))?", name), re.fullmatch(r"(v\d+[a-z])-(\d+)(?:x(\d+))?", name)
    if gpu and gpu[1] in _GPUS:
        count = int(gpu[2] or 1)
        ConfigError.require(1 <= count <= 8, f"{name}: expected 1 to 8 GPUs of one machine")
        return Target(name, count, _GPUS[gpu[1]][0], "cuda", str(count))
    kinds = [*(f"{kind}x8" for kind in _GPUS), *(f"{kind}-8" for kind in _TPUS)]
    ConfigError.require(tpu is not None and tpu[1] in _TPUS, unknown("target", name, kinds))
    assert tpu is not None
    memory, cores, slices = _TPUS[tpu[1]]
    chips, num_slices = int(tpu[2]) // cores, int(tpu[3] or 1)
    sizes = ", ".join(f"{tpu[1]}-{count * cores}" for count in slices)
    ConfigError.require(chips in slices and chips * cores == int(tpu[2]), f"{name}: expected one of {sizes}")
    ConfigError.require(num_slices >= 1, f"{name}: expected 1 slice or more")
    return Target(name, chips * num_slices, memory, "tpu", f"{tpu[1]}:{slices[chips]}", num_slices)


def _gpu_config(target: Target) -> str:
    """What XLA's GPU compiler asks a driver, for a Hopper GPU."""
    memory, bandwidth, cache, name = _GPUS[target.name.partition("x")[0]]
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132
          fpus_per_core: 128 shared_memory_per_block: 49152 shared_memory_per_core: 233472
          shared_memory_per_block_optin: 232448 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
          block_dim_limit_z: 65535 registers_per_core_limit: 65536 registers_per_block_limit: 65536
          memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: 1.98 device_memory_size: {memory}
          cuda_compute_capability {{ major: 9 }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        device_description_str: "{name}"
    """
