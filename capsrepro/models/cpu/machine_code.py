"""Machine code of functions that are given in LLVM's language, for the processor at hand."""

from __future__ import annotations

from functools import cache
from typing import Any

import llvmlite.binding as llvm

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()


@cache
def features() -> Any:
    """What the processor can do; nothing beyond the least where LLVM does not know."""
    try:
        return llvm.get_host_cpu_features()
    except RuntimeError:
        return llvm.FeatureMap()


def address_of(name: str, assembly: str, level: int) -> int:
    """Of a function's machine code, which is kept as long as the process runs.

    Args:
        name: Of the function; no other that was compiled may have it.
        assembly: A module with this function.
        level: Of what LLVM does to the code first, from 0 to 3.
    """
    machine, engine = _compiler()
    # In a context of its own, all that LLVM makes of the module is freed but for the code: a few
    # kilobytes instead of three megabytes.
    module = llvm.parse_assembly(assembly, llvm.create_context())
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(level))
    passes.getModulePassManager().run(module, passes)
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine.emit_object(module)))
    engine.finalize_object()
    return int(engine.get_function_address(name))


@cache
def _compiler() -> tuple[llvm.TargetMachine, llvm.ExecutionEngine]:
    """What makes the code, and what keeps it."""
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features().flatten(), opt=3, jit=True
    )
    return machine, llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
