"""Layouts by name: how many ranks, and the fields of `ParallelConfig`."""

LAYOUTS = {
    "tp1": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "tp2.sp": (2, {"tensor": 2, "sequence": True}),
    "pp2": (2, {"pipeline": 2}),
    "pp2.vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp2": (2, {}),
    "tp2.dp2": (4, {"tensor": 2}),
    "cp2": (2, {"context": 2}),
    "cp4": (4, {"context": 4}),
    "cp2.dp2": (4, {"context": 2}),
    "cp2.tp2.sp": (4, {"context": 2, "tensor": 2, "sequence": True}),
    "cp2.pp2.vpp2": (4, {"context": 2, "pipeline": 2, "virtual_pipeline": 2}),
    "tp2.pp2.sp": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
}
