from megarlhf.data.records import Sequence
from megarlhf.data.saved_batch import read_batch, write_batch


def test_a_batch_comes_back_as_it_was(tmp_path):
    sequences = [
        Sequence(
            [5, 6, 7], [0.0, 1.0, 1.0], {"advantages": [0.1, float("inf"), -0.3]}, {"kl": 0.2}
        ),
        Sequence([8, 9], [0.0, 1.0], {"advantages": [0.0, 1e-300]}, {"kl": -1.5}),
    ]
    file = tmp_path / "batch.safetensors"
    write_batch(file, sequences, {"step": "step 3"})
    assert read_batch(file) == (sequences, {"step": "step 3"})
