"""What the BPF program must know of this kernel's memory, as -D defines."""

from __future__ import annotations

from uffdtrace.errors import UffdtraceError
from uffdtrace.kernel import architecture
from uffdtrace.kernel.btf import Btf
from uffdtrace.kernel.page import PAGE_SIZE
from uffdtrace.kernel.symbols import Symbols


class LayoutError(UffdtraceError):
    """The kernel lacks a struct or member we cannot do without."""


_MEMBERS = {
    "VMF_VMA": ("vm_fault", "vma"),
    "VMF_ADDRESS": ("vm_fault", "address"),
    "VMF_FLAGS": ("vm_fault", "flags"),
    "VMF_ORIG_PTE": ("vm_fault", "orig_pte"),
    "VMA_START": ("vm_area_struct", "vm_start"),
    "VMA_END": ("vm_area_struct", "vm_end"),
    "VMA_FLAGS": ("vm_area_struct", "vm_flags"),
    "VMA_MM": ("vm_area_struct", "vm_mm"),
    "VMA_OPS": ("vm_area_struct", "vm_ops"),
    "VMA_FILE": ("vm_area_struct", "vm_file"),
    "VMA_CTX": ("vm_area_struct", "vm_userfaultfd_ctx.ctx"),
    "CTX_MM": ("userfaultfd_ctx", "mm"),
    "CTX_FEATURES": ("userfaultfd_ctx", "features"),
    "CTX_FLAGS": ("userfaultfd_ctx", "flags"),
    "CTX_UNREAD_FAULTS": ("userfaultfd_ctx", "fault_pending_wqh.head"),
    "CTX_READ_FAULTS": ("userfaultfd_ctx", "fault_wqh.head"),
    "CTX_UNREAD_EVENTS": ("userfaultfd_ctx", "event_wqh.head"),
    "MM_PGD": ("mm_struct", "pgd"),
    "TASK_PID": ("task_struct", "pid"),
    "TASK_TGID": ("task_struct", "tgid"),
    "TASK_SIGNAL": ("task_struct", "signal"),
    "TASK_FLAGS": ("task_struct", "flags"),
    "TASK_LEADER": ("task_struct", "group_leader"),
    "TASK_COMM": ("task_struct", "comm"),
    "TASK_PENDING": ("task_struct", "pending.signal"),
    "TASK_MM": ("task_struct", "mm"),
    "TASK_STACK": ("task_struct", "stack"),
    "UWQ_WQ": ("userfaultfd_wait_queue", "wq"),
    "UWQ_MSG": ("userfaultfd_wait_queue", "msg"),
    "UWQ_CTX": ("userfaultfd_wait_queue", "ctx"),
    "WQE_PRIVATE": ("wait_queue_entry", "private"),
    "WQE_FUNC": ("wait_queue_entry", "func"),
    "WQE_ENTRY": ("wait_queue_entry", "entry"),
    "WAKE_START": ("userfaultfd_wake_range", "start"),
    "WAKE_LEN": ("userfaultfd_wake_range", "len"),
    "FILE_PRIVATE": ("file", "private_data"),
    "FILE_FLAGS": ("file", "f_flags"),
    "FILE_INODE": ("file", "f_inode"),
    "INODE_SB": ("inode", "i_sb"),
    "SB_FS_INFO": ("super_block", "s_fs_info"),
    "HUGETLBFS_HSTATE": ("hugetlbfs_sb_info", "hstate"),
    "HSTATE_ORDER": ("hstate", "order"),
}

# Structs that are read whole, and what lies at the top of a kernel stack.
_SIZES = {"UWQ_SIZE": "userfaultfd_wait_queue", "WAKE_SIZE": "userfaultfd_wake_range", "REGS_SIZE": "pt_regs"}

# Structs whose numbers in BTF the program names.
_NUMBERS = {"WAITER": "userfaultfd_wait_queue", "VM_FAULT": "vm_fault", "VM_AREA": "vm_area_struct"}

# BPF_FUNC_get_current_task_btf (include/uapi/linux/bpf.h).
_CURRENT_TASK = 158

# Begin and end of the first task's kernel stack (include/asm-generic/vmlinux.lds.h), as they are called since "x86:
# Rename __{start,end}_init_task to __{start,end}_init_stack" (8f69cba096b5, 6.10) and before.
_FIRST_STACK = (("__start_init_stack", "__end_init_stack"), ("__start_init_task", "__end_init_task"))

# How far a struct is read at once for these of its members.
_SPANS = {
    "VMF_SPAN": ("VMF_VMA", "VMF_ADDRESS", "VMF_FLAGS", "VMF_ORIG_PTE"),
    "VMA_SPAN": ("VMA_START", "VMA_END", "VMA_FLAGS", "VMA_MM"),
}

# Of two rows for one name, the one whose member this kernel has.
_OPTIONAL_MEMBERS = (
    # Absent without CONFIG_MEMCG: owners then stay unknown.
    ("MM_OWNER", "mm_struct", "owner"),
    ("SIGNAL_OOM_ORIGIN", "signal_struct", "oom_flag_origin"),
    # ksm_rmap_item since 6.1 (21fbd59136e0).
    ("RMAP_ITEM_MM", "rmap_item", "mm"),
    ("RMAP_ITEM_MM", "ksm_rmap_item", "mm"),
    ("RMAP_ITEM_ADDRESS", "rmap_item", "address"),
    ("RMAP_ITEM_ADDRESS", "ksm_rmap_item", "address"),
)

_SYMBOLS = {
    "USERFAULTFD_WAKE_FUNCTION": "userfaultfd_wake_function",
    "TOTAL_SWAP_PAGES": "total_swap_pages",
    "FREE_SWAP_PAGES": "nr_swap_pages",
}

# __pgtable_l5_enabled since 4.18; without the symbol the kernel has four levels.
_OPTIONAL_SYMBOLS = {
    "PGTABLE_L5_ENABLED": "__pgtable_l5_enabled",
    # Of a mapping of tmpfs, memfd or shared anonymous memory; the last has its own since 6.2
    # (d09e8ca6cb93 "mm: anonymous shared memory naming").
    "SHMEM_VM_OPS": "shmem_vm_ops",
    "SHMEM_ANON_VM_OPS": "shmem_anon_vm_ops",
    # System V shared memory wraps those of shmem.
    "SHM_VM_OPS": "shm_vm_ops",
}

# Defines that are addresses: each boot has others (KASLR).
ADDRESSES = frozenset(
    {*_SYMBOLS, *_OPTIONAL_SYMBOLS, *(name for known in architecture.KNOWN.values() for name in known.symbols)}
)

# Defines that are numbers of kernel functions which the program calls, in the kernel's BTF.
FUNCTIONS = frozenset({"RDONLY_CAST", "SESSION_IS_RETURN"})


def _stack_size(symbols: Symbols) -> int:
    """Bytes of a kernel stack: BTF has no type of that size on every architecture, but the first task has a stack."""
    for names in _FIRST_STACK:
        start, end = map(symbols.address, names)
        if start is not None and end is not None and start < end:
            return end - start
    raise LayoutError(
        "/proc/kallsyms does not tell how large kernel stacks are: the kernel needs CONFIG_KALLSYMS_ALL=y"
    )


def defines(btf: Btf, symbols: Symbols, machine: str | None = None) -> dict[str, int]:
    """Name to value of every define; LayoutError names what this kernel lacks, ArchitectureError a strange machine."""
    here = architecture.of(machine)
    found = {
        **here.bits,
        "PAGE_SIZE": PAGE_SIZE,
        "PAGE_SHIFT": PAGE_SIZE.bit_length() - 1,
        "ORDERED": int(here.ordered),
    }
    for name, (member, behind) in here.saved.items():
        offset = btf.offset("pt_regs", member)
        if offset is None:
            raise LayoutError(f"this kernel's BTF has no pt_regs.{member}: run uffdtrace doctor, and report it")
        found[name] = offset + behind
    for name, (structure, path) in _MEMBERS.items():
        offset = btf.offset(structure, path)
        if offset is None:
            raise LayoutError(f"this kernel's BTF has no {structure}.{path}: was it built with CONFIG_USERFAULTFD=y?")
        found[name] = offset
    for name, structure in _NUMBERS.items():
        number = btf.number(structure)
        if number is None:
            raise LayoutError(f"this kernel's BTF has no struct {structure}: was it built with CONFIG_USERFAULTFD=y?")
        found[name] = number
    for name, structure in _SIZES.items():
        size = btf.size(structure)
        if size is None:
            raise LayoutError(f"this kernel's BTF has no struct {structure}: was it built with CONFIG_USERFAULTFD=y?")
        found[name] = size
    found["THREAD_SIZE"] = _stack_size(symbols)
    for name, members in _SPANS.items():
        found[name] = (max(found[member] for member in members) + 8) & ~7
    for name, structure, path in _OPTIONAL_MEMBERS:
        offset = btf.offset(structure, path)
        if offset is not None:
            found[name] = offset
    for name, symbol in {**_SYMBOLS, **here.symbols, **_OPTIONAL_SYMBOLS}.items():
        address = symbols.address(symbol)
        if address is not None:
            found[name] = address
        elif name not in _OPTIONAL_SYMBOLS:
            raise LayoutError(f"/proc/kallsyms has no {symbol}: the kernel needs CONFIG_KALLSYMS_ALL=y")
    head = btf.enumerators("pageflags").get("PG_head")
    if head is None:
        raise LayoutError("this kernel's BTF has no PG_head: huge pages could not be told from small ones")
    found["PG_HEAD"] = head
    # a35b9af4ec2c "bpf: Add a kfunc for generic type cast" (6.2).
    cast, integers = btf.function("bpf_rdonly_cast"), btf.number("timespec64")
    if cast is not None and integers is not None:
        found.update(RDONLY_CAST=cast.number, INTEGERS=integers)
    # adf46d88ae4b "bpf: Add support for kprobe session context" (6.10).
    session = btf.function("bpf_session_is_return")
    if session is not None:
        found["SESSION_IS_RETURN"] = session.number
    # 3ca1032ab7ab "bpf: Implement get_current_task_btf and RET_PTR_TO_BTF_ID" (5.11).
    if btf.function("bpf_get_current_task_btf") is not None:
        found["CURRENT_TASK"] = _CURRENT_TASK
        # What it brings is trusted since 3f00c5239344 "bpf: Allow trusted pointers to be passed to KF_TRUSTED_ARGS
        # kfuncs" (6.2): members of the task are then loaded without a check of the address.
        if "PTR_TRUSTED" in btf.enumerators("bpf_type_flag"):
            found["TRUSTED_TASK"] = 1
    return found
