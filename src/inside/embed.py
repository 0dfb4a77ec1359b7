"""embed.py <symbol> <input> <output.S>: an assembler file that holds the input's bytes."""
import os
import sys

symbol, source, target = sys.argv[1:]
path = os.path.abspath(source)
with open(target, "w", encoding="ascii") as out:
    out.write(f"""    .section .rodata
    .balign 64
    .global {symbol}
    .type {symbol}, @object
{symbol}:
    .incbin "{path}"
1:
    .size {symbol}, . - {symbol}
    .balign 8
    .global {symbol}_size
    .type {symbol}_size, @object
{symbol}_size:
    .quad 1b - {symbol}
    .size {symbol}_size, 8
    .section .note.GNU-stack,"",@progbits
""")
