"""Loops of LLVM instructions, for what is emitted rather than compiled from Python."""

from llvmlite import ir

_I64 = ir.IntType(64)


def number(value: int):
    """A constant."""
    return ir.Constant(_I64, value)


def _keep_rolled(builder, branch) -> None:
    """LLVM would unroll the loop that ends with ``branch``; its body is long enough as it is."""
    module = builder.module
    option = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    # A loop's metadata begins with itself; until then a number tells it from those of other loops.
    loop = module.add_metadata([option, ir.Constant(_I64, len(module.metadata))])
    loop.operands = (loop, option)
    branch.set_metadata("llvm.loop", loop)


class Loop:
    """``for n in range(count)`` around what is emitted in between, carrying ``values``."""

    def __init__(self, builder, count, values, name):
        self.builder, self.count = builder, count
        self.before, self.values = builder.block, values
        self.body = builder.append_basic_block(name)
        self.after = builder.append_basic_block(name + ".end")
        builder.cbranch(builder.icmp_signed(">", count, number(0)), self.body, self.after)
        builder.position_at_end(self.body)
        self.n = builder.phi(_I64)
        self.carried = [builder.phi(v.type) for v in values]

    def close(self, new):
        """End the body; what the values are after the loop."""
        builder, last = self.builder, self.builder.block
        following = builder.add(self.n, number(1))
        self.n.add_incoming(number(0), self.before)
        self.n.add_incoming(following, last)
        for phi, old, value in zip(self.carried, self.values, new, strict=True):
            phi.add_incoming(old, self.before)
            phi.add_incoming(value, last)
        again = builder.icmp_signed("<", following, self.count)
        _keep_rolled(builder, builder.cbranch(again, self.body, self.after))
        builder.position_at_end(self.after)
        out = []
        for old, value in zip(self.values, new, strict=True):
            phi = builder.phi(value.type)
            phi.add_incoming(old, self.before)
            phi.add_incoming(value, last)
            out.append(phi)
        return out
