"""From a configuration to its plan: every role is run, and what was found is put together."""

from collections.abc import Callable
from dataclasses import replace

from megarlhf.config.schema import RLConfig
from megarlhf.plan.decoding import generation
from megarlhf.plan.engine_memory import engine_place, with_engines
from megarlhf.plan.engines import StreamNeeds, engine_needs, stream_needs
from megarlhf.plan.equal_layers import have_equal_layers
from megarlhf.plan.fake_run import RankRun
from megarlhf.plan.layers import distinct_stages, run_stage
from megarlhf.plan.memory import RoleRun, devices_of, training_places
from megarlhf.plan.result import Plan
from megarlhf.plan.roles import Role
from megarlhf.plan.run_roles import roles_of
from megarlhf.plan.sampling import Sampling
from megarlhf.plan.subject import Subject
from megarlhf.plan.timeline import lay_out
from megarlhf.plan.timing import Machines, stream_seconds
from megarlhf.plan.useful_work import active_parameters, useful_flops


def make_plan(
    subject: Subject,
    run: Callable[..., RankRun] = run_stage,
    stream: Callable[..., StreamNeeds] = stream_needs,
) -> Plan:
    """Run every role's distinct ranks and put together what they need.

    Args:
        subject: What is planned.
        run: How a role's stage is run: `run_stage`, or `estimating`.
        stream: What finds a weight update's bytes.

    Raises:
        UserError: The configuration cannot be planned, or its layout does not go with the model.
    """
    known: dict[tuple, RankRun] = {}
    runs = []
    for role in roles_of(subject.config, subject.gpus, subject.shape_of):
        stages = {}
        for stage in distinct_stages(role):
            key = _alike(role, stage)
            if key not in known:
                known[key] = run(role, stage, exact=subject.exact, skew=subject.skew)
            stages[stage] = known[key]
        runs.append(RoleRun(role, stages))
    return _assembled(subject, runs, stream)


def _alike(role: Role, stage: int) -> tuple:
    """Equal for stages that need the same: of actor and critic in one layout all but the last.

    The losses' fields, which every stage has a copy of, are taken to be the first one's.
    """
    is_last = stage == role.topology.pp - 1
    config, trained = role.config, role.optimizer
    return (
        stage,
        role.name if is_last or role.spec.tied else None,
        (role.spec.path, config.dtype, config.recompute, config.experts, config.parallel),
        (role.topology, role.micro_batch_tokens, role.lora, role.averaging, role.is_borrowed),
        None if trained is None else trained.offload,
        tuple((name, replace(work, fields=())) for name, work in sorted(role.work.items())),
    )


def _assembled(subject: Subject, runs: list[RoleRun], find: Callable[..., StreamNeeds]) -> Plan:
    config, roles = subject.config, [run.role for run in runs]
    devices = devices_of(config, runs)
    sampling = _sampling(subject, roles[0], find) if isinstance(config, RLConfig) else None
    stream = None if sampling is None else sampling.stream
    places = []
    for each in devices:
        own = training_places(each, subject.memory, subject.calibration, stream)
        if sampling is not None and each.engines:
            with_engines(own, sampling.place, subject.calibration)
        places += own
    if sampling is not None and not any(each.engines for each in devices):
        places.append(sampling.place)
    tokens = sum(subject.lengths)
    return Plan(
        subject=subject,
        places=places,
        spans=lay_out(devices, _machines(subject), sampling, subject.lengths),
        tokens=_tokens(subject),
        useful_flops=useful_flops(roles, tokens),
        sampling=sampling,
        notes=_notes(subject, roles),
    )


def _machines(subject: Subject) -> Machines:
    return Machines(subject.gpu, subject.gpus_per_node, subject.calibration)


def _sampling(subject: Subject, actor: Role, find: Callable[..., StreamNeeds]) -> Sampling:
    config = subject.config
    assert isinstance(config, RLConfig)
    rollout, directory = config.rollout, subject.shape_of(config.model.path)
    on = _machines(subject)
    stream = find(config, actor, exact=subject.exact)
    engines = engine_needs(config, directory, subject.gpu, subject.calibration)
    return Sampling(
        engines=engines,
        stream=stream,
        place=engine_place(
            engines, subject.gpu, rollout.gpu_memory_utilization, stream, subject.memory
        ),
        generated=generation(
            actor.spec,
            engines,
            rollout.prompts_per_step,
            rollout.samples_per_prompt,
            subject.lengths,
            rollout.max_new_tokens,
            on,
            active_parameters(actor.spec),
        ),
        update_seconds=stream_seconds(stream, on, rollout.placement == "colocated"),
        ahead=rollout.async_steps > 0,
    )


def _tokens(subject: Subject) -> int:
    config = subject.config
    if isinstance(config, RLConfig):
        sequences = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    else:
        sequences = config.train.batch_size * config.data.sequences_per_row
    return sequences * sum(subject.lengths)


def _notes(subject: Subject, roles: list[Role]) -> list[str]:
    notes = []
    if not subject.exact and all(have_equal_layers(role.spec) for role in roles):
        notes.append(
            "deep stages were run with 2 and 3 layers a chunk and extrapolated; --exact runs all"
        )
    if any(role.spec.num_experts for role in roles):
        notes.append(f"routing is taken to be even, times --skew {subject.skew:g} on this rank")
    notes.append(
        "memory is for the longest sequences; time is for "
        f"{' + '.join(str(length) for length in subject.lengths if length)} tokens a sequence"
    )
    return notes
