"""Named tuples by reference: kernels pass one address instead of fifty numbers.

Numba passes every field of a tuple as an argument and unpacks it in every function, which made most
of the code that LLVM had to read. The tuple lies on the stack until LLVM, having inlined all
functions, keeps its fields in registers.
"""

from numba.core import cgutils, types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
)


class Reference(types.Type):
    """Numba's type of the address of a named tuple."""

    def __init__(self, record) -> None:
        super().__init__(name=f"Reference({record.instance_class.__name__}, {record.types})")
        self.record = record


@register_model(Reference)
class _ReferenceModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, dmm.lookup(fe_type.record).get_value_type().as_pointer())


@intrinsic
def by_reference(typingctx, record):
    """Put a named tuple on the stack and return its reference, which has the same attributes."""

    def codegen(context, builder, sig, args):
        return cgutils.alloca_once_value(builder, args[0])

    return Reference(record)(record), codegen


@infer_getattr
class _Fields(AttributeTemplate):
    key = Reference

    def generic_resolve(self, reference, name):
        record = reference.record
        if name not in record.fields:
            return None
        field = record.types[record.fields.index(name)]
        return Reference(field) if isinstance(field, types.BaseNamedTuple) else field


@lower_getattr_generic(Reference)
def _field(context, builder, reference, address, name):
    record = reference.record
    index = record.fields.index(name)
    place = cgutils.gep_inbounds(builder, address, 0, index)
    is_nested = isinstance(record.types[index], types.BaseNamedTuple)
    return place if is_nested else builder.load(place)
