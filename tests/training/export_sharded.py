"""Run on 8 fake devices by test_export: lowers the two sharded steps for TPUs and NVIDIA GPUs."""

import tempfile
from pathlib import Path

import jax

from g1jax.training import steps
from g1jax.training.setup import make_setup
from tests.training import test_export, tiny


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.save_model(Path(folder) / "model")
        changes = {"cold_start__states": 8, "rl__states": 8, "games": ("game_2048",)}
        experiment = tiny.make_experiment(model, folder, mesh__data=2, mesh__fsdp=2, mesh__tensor=2, **changes)
        setup = make_setup(experiment)
    with jax.set_mesh(setup.mesh):
        constants = steps.constants_of(setup, None)
        batches = test_export.batch_shapes(setup)
        programs = {
            "cold_step": (steps.cold_step, setup.cold, steps.template(setup, 0), constants, batches),
            "rl_step": (steps.rl_step, setup.rl, steps.template(setup, experiment.num_steps), constants),
        }
        for name, (step, values, *args) in programs.items():
            text, num_devices = test_export.lower(test_export.jitted(step, values), *args)
            assert "sharding" in text
            print(name, num_devices)


if __name__ == "__main__":
    main()
