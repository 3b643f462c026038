"""Layouts by name: how many ranks, and the fields of `ParallelConfig`."""

LAYOUTS = {
    "tp1": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "tp2.sp": (2, {"tensor": 2, "sequence": True}),
    "pp2": (2, {"pipeline": 2}),
    "pp2.vpp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "dp2": (2, {}),
    "tp2.dp2": (4, {"tensor": 2}),
    "tp2.pp2.sp": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
}
