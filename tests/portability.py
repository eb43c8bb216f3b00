"""Which operators MindSpore's own libraries and documentation say each platform has.

The registries of kernels are compiled into the plugins of the wheel as code that runs when a plugin is loaded: the name
goes into a std::string, and that string to the factory of the kernels. The names are read out of this code, so neither
a GPU nor an NPU nor their drivers are needed. Searching the plugins for the names as text would prove nothing: every
plugin holds the names of most operators, and the linker stores many only as the end of a longer one. See
docs/portability.md.

Addresses are those of the ELF file (x86-64).
"""

import importlib
import inspect
import re
import struct
from functools import cache, cached_property
from pathlib import Path

import mindspore as ms
import numpy as np

LIB = Path(ms.__file__).parent / "lib"
ASCEND, GPU, CPU = PLATFORMS = ("Ascend", "GPU", "CPU")
KERNEL_LIBRARIES = {
    ASCEND: "plugin/libmindspore_ops_ascend.so",
    GPU: "plugin/libmindspore_gpu.so.*",
    CPU: "plugin/libmindspore_ops_cpu.so",
}
ADAPTER_LIBRARY = "plugin/ascend/libmindspore_ascend_res_manager.so"
# Parts of mangled names.
MAKE_STRING = "_ZNSsC1EPKcRKSaIcE"  # std::string(const char*, allocator)
GET_FACTORY = "11FactoryBase11GetInstance"
GET_ADAPTERS = "12OpAdapterMap3getEv"
COPY_ATTRIBUTES = "10KernelAttrC1ERKS1_"  # the types of a kernel's inputs, kept by the older of the GPU's factories
START_SINGLETON = "__cxa_guard_acquire"
EXPAND = "8expander14TryExpandCNode"
LOAD_STRING = b"\x48\x8d\x35"  # lea rsi, [rip + ...]: the second argument
LOAD_SYMBOL = b"\x48\x8b\x05"  # mov rax, [rip + ...]: a variable of another library, through the offset table
LONGEST_HEAD = 400  # bytes from the start of a function to the call by which it is recognised

# Modules of primitives, the public ones first.
MODULES = (
    "auto_generate.gen_ops_prim", "operations", "operations.manually_defined.ops_def", "operations.nn_ops",
    "operations.math_ops", "operations.array_ops", "operations.image_ops", "operations.other_ops",
    "operations._grad_ops", "operations._inner_ops",
)  # fmt: skip


class Library:
    """The code of one shared library."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        if self.data[:4] != b"\x7fELF" or self.data[18:20] != b"\x3e\x00":
            raise ValueError(f"{path}: not an x86-64 ELF file; kernel names can only be read from those")
        table, count, names = struct.unpack_from("<Q", self.data, 40)[0], *struct.unpack_from("<HH", self.data, 60)
        headers = [struct.unpack_from("<IIQQQQ", self.data, table + 64 * i) for i in range(count)]
        self.sections = {self._text(headers[names][4] + h[0]): (h[3], h[4], h[5]) for h in headers}
        self.base, self.code = self._section(".text")

    def _text(self, offset: int) -> str:
        return self.data[offset : self.data.index(b"\0", offset)].decode()

    def _section(self, name: str) -> tuple[int, bytes]:
        address, offset, size = self.sections[name]
        return address, self.data[offset : offset + size]

    def _relocations(self, name: str):
        """(address, symbol name or empty) of each entry."""
        strings, symbols = self.sections[".dynstr"][1], self.sections[".dynsym"][1]
        for address, info, _ in struct.iter_unpack("<QQq", self._section(name)[1]):
            symbol = struct.unpack_from("<I", self.data, symbols + 24 * (info >> 32))[0]
            yield address, self._text(strings + symbol) if info >> 32 else ""

    @cached_property
    def imports(self) -> dict[int, str]:
        """Functions of other libraries: address of the jump to it -> mangled name."""
        start = self.sections[".plt"][0]
        return {start + 16 * (i + 1): name for i, (_, name) in enumerate(self._relocations(".rela.plt"))}

    @cached_property
    def variables(self) -> dict[int, str]:
        """Variables by their place in the offset table."""
        return dict(self._relocations(".rela.dyn"))

    @cached_property
    def calls(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets in the code of all call instructions, rising, and the addresses that they call."""
        code = np.frombuffer(self.code, np.uint8)
        sites = np.flatnonzero(code[:-4] == 0xE8)
        distance = sum(code[sites + 1 + i].astype(np.uint32) << (8 * i) for i in range(4)).astype(np.int32)
        targets = self.base + sites + 5 + distance
        imports = np.fromiter(self.imports, np.int64)
        real = ((targets >= self.base) & (targets < self.base + len(code))) | np.isin(targets, imports)
        return sites[real], targets[real]

    def calling(self, part: str) -> np.ndarray:
        """Which of the calls go to an imported function with `part` in its mangled name."""
        return np.isin(self.calls[1], [address for address, name in self.imports.items() if part in name])

    def leading_to(self, part: str) -> np.ndarray:
        """Which of the calls go to a function of this library that calls such an imported function near its start."""
        sites, targets = self.calls
        inner = sites[self.calling(part)] + self.base
        first = np.append(inner, np.iinfo(np.int64).max)[np.searchsorted(inner, targets)]
        return (targets >= self.base) & (first - targets < LONGEST_HEAD)

    def pointed(self, offset: int) -> int:
        """The address that the 7-byte instruction at `offset` of the code takes relative to itself."""
        return self.base + offset + 7 + struct.unpack_from("<i", self.code, offset + 3)[0]

    def string_before(self, site: int) -> str | None:
        """The constant that the call at `site` makes a string of, if it is an identifier."""
        offset = self.code.rfind(LOAD_STRING, max(0, site - 40), site)
        start, where, size = self.sections[".rodata"]
        if offset < 0 or not start <= self.pointed(offset) < start + size:
            return None
        text = re.compile(rb"[A-Za-z_]\w*\0").match(self.data, where + self.pointed(offset) - start)
        return text and text.group()[:-1].decode()


def library(pattern: str) -> Path | None:
    """The newest file of the wheel that fits the pattern."""
    files = sorted(LIB.glob(pattern))
    return files[-1] if files else None


@cache
def kernel_names(path: Path) -> frozenset[str]:
    """Names that a plugin gives to any factory of kernels: string(name); factory(); register(...)."""
    code = Library(path)
    sites = code.calls[0]
    factory = code.leading_to(GET_FACTORY)[1:-1]
    older = code.leading_to(START_SINGLETON)[1:-1] & code.leading_to(COPY_ATTRIBUTES)[2:]
    found = np.flatnonzero(code.calling(MAKE_STRING)[:-2] & (factory | older) & (np.diff(sites)[:-1] < 96))
    return frozenset(filter(None, (code.string_before(sites[i]) for i in found)))


@cache
def adapter_names(path: Path) -> frozenset[str]:
    """Names that Ascend's plugin enters into its map of adapters to the operators of CANN.

    The key is a constant (OpAdapterMap::get(); string(name)) or the name of a primitive of the core library, a variable
    kPrim<name>.
    """
    code = Library(path)
    sites = code.calls[0]
    makes, names = set(sites[code.calling(MAKE_STRING)]), set()
    for site in sites[code.calling(GET_ADAPTERS)]:
        made = next((at for at in range(site + 5, site + 48) if at in makes), None)
        load = code.code.find(LOAD_SYMBOL, site + 5, site + 20)
        if made is not None:
            names.add(code.string_before(made))
        elif load >= 0 and (symbol := re.search(r"\d+kPrim(\w+)E$", code.variables.get(code.pointed(load), ""))):
            names.add(symbol.group(1))
    return frozenset(filter(None, names))


@cache
def registered(platform: str) -> frozenset[str]:
    """Operators that the platform's plugin registers a kernel for."""
    names = kernel_names(library(KERNEL_LIBRARIES[platform]))
    return names | adapter_names(library(ADAPTER_LIBRARY)) if platform == ASCEND else names


@cache
def expands(path: Path) -> bool:
    """Whether a plugin asks MindSpore's common expander for operators that it has no kernel for."""
    return any(EXPAND in name for name in Library(path).imports.values())


@cache
def documented(primitive: str) -> frozenset[str] | None:
    """Platforms that the documentation of the primitive names, or of the function it refers to; None if none."""
    for module in MODULES:
        found = getattr(importlib.import_module(f"mindspore.ops.{module}"), primitive, None)
        if inspect.isclass(found) and issubclass(found, ms.ops.Primitive):
            text = found.__doc__ or ""
            reference = re.search(r"Refer to :\w+:`mindspore\.ops\.(\w+)`", text)
            function = reference and getattr(ms.ops, reference.group(1), None)
            return stated_platforms(text) or stated_platforms(getattr(function, "__doc__", None) or "")
    return None


def stated_platforms(text: str) -> frozenset[str] | None:
    """Platforms below "Supported Platforms:" of a docstring; None without that heading or without a name below it."""
    stated = re.search(r"Supported Platforms:\s*\n\s*(.+)", text)
    names = frozenset(re.findall(r"``(\w+)``", stated.group(1))) if stated else None
    return names or None


def missing_platforms(primitive: str) -> frozenset[str]:
    """Platforms on which nothing proves that the primitive runs.

    A kernel must be registered, and documentation that names platforms must not leave this one out. On Ascend, whose
    registries are only partly in the wheel (AICPU, HCCL and host kernels belong to CANN), documentation alone will do.
    """
    stated = documented(primitive)
    missing = set(PLATFORMS) - stated if stated else set()
    for platform in PLATFORMS:
        known = primitive in registered(platform) or (platform == ASCEND and stated and ASCEND in stated)
        if not known:
            missing.add(platform)
    return frozenset(missing)
