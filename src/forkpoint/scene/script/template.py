"""The fixed parts of a scene's script, as source."""

from __future__ import annotations

PAIRED = '''
def paired(runs):
    """Takes shared elements, given where each run of them begins in A and in B, and its length."""
    a, b = (torch.cat([torch.arange(run[i], run[i] + run[2]) for run in runs]) for i in (0, 1))
    return lambda x, y: (x.flatten()[a.to(x.device)], y.flatten()[b.to(y.device)])
'''
VIEW = """def view(memory, spec):
    key, *layout = spec
    return memory[key].as_strided(*layout)"""
VIEW_LEAD = """def view(memory, spec):
    key, shape, stride, offset = spec
    return memory[key].as_strided(shape, stride, memory[key].storage_offset() + offset)"""
TENSORS = '''def tensors(specs, device, dtype=None):
    """Fresh tensors of a run, laid out as they were; the floating-point ones in another dtype, if one is given."""
    memory = {}
    for key in {key for key, *_ in specs.values()}:
        kind = dtype if data[key].is_floating_point() else None
        memory[key] = SOURCE.to(DEVICE, kind, copy=True)LEFT
    return {name: view(memory, spec) for name, spec in specs.items()}MORE'''
SAME = """def same(a, b):
    return bool(((a == b) | ((a != a) & (b != b))).all())"""
CHECK_BEGIN = """
def check(device):
    print(device)
    a, b = tensors(A, device), tensors(B, device)
    for name in [name for name in SHARED if name != "output"]:
        print(f"  {name} equal: {same(*SHARED[name](a[name], b[name]))}")
    outputs = run_a(a), run_b(b)
"""
CHECK_RECORDED = """
    repeats = [same(out.cpu(), view(data, spec)) for out, spec in zip(outputs, RECORDED)]
    print(f"  A as recorded: {repeats[0]}; B as recorded: {repeats[1]}")
"""
CHECK_OUTPUTS = """
    x, y = (out.cpu().flatten().double() for out in SHARED["output"](*outputs))
    differ = ((x != y) & ~(x.isnan() & y.isnan())).nonzero().flatten().tolist()
    print(f"  outputs: {len(differ)} of {len(x)} shared elements differ, by up to {(x - y).abs().max():.3g}")
    for first in differ[:1]:
        print(f"  first unequal: {x[first].item()!r} in A, {y[first].item()!r} in B")
    close = [f"1e-{k} {torch.allclose(x, y, atol=10.0**-k, equal_nan=True)}" for k in range(3, 9)]
    print("  allclose with atol", *close, sep="  ")
"""
CHECK_FLOAT64 = """
    exact = run_a(tensors(A, device, torch.float64), torch.float64), run_b(tensors(B, device, torch.float64), torch.float64)
    for name, out, exact in zip("AB", (x, y), SHARED["output"](*exact)):
        exact, info = exact.cpu().flatten().double(), torch.finfo(outputs[0].dtype)
        error = (out - exact).abs() / (info.eps * 2.0 ** (exact.abs().clamp(min=info.tiny).frexp()[1].double() - 1))
        print(f"  error of {name} against float64, in ULP: median {error.nanmedian():.3g}, largest {error.max():.3g}")
"""
END = """
seen = {device: check(device) for device in ["cpu", "cuda"][: 1 + torch.cuda.is_available()]}
print("WHAT on HOME:", {True: "yes", False: "no", None: "there is no such device here"}[seen.get("HOME")])
sys.exit(not seen.get("HOME"))
"""
