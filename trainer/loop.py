"""The training loop, in one file that reads from top to bottom.

Copy it, change what your experiment needs, and run it with `--trainer=my_loop`.
"""

import contextlib
import os
import shlex
import time

import numpy as np
import tensorflow as tf

from trainer import (
    checkpoints,
    cluster,
    experiment,
    flight,
    helptext,
    input_state,
    meters,
    optimizers,
    schedules,
    signals,
    summaries,
    towers,
)
from trainer.config import UserError, seed_of
from trainer.data import check_batch, data_errors, load_datasets
from trainer.validation import Validation

v1 = tf.compat.v1


def train(
    model,
    config,
    *,
    fresh=False,
    yes=False,
    debug=False,
    replay_step=None,
    allow_config_change=False,
    fallback=False,
):
    """Trains a model to `model.num_steps` completed updates, from its last checkpoint if any.

    It can run in any thread, and any number of times per process.

    Args:
      model: a module with `config`, `datasets()`, `build(inputs, train_phase)`, and optionally
        `loss(outputs)` and `metrics(outputs)`.
      config: its `Config`.
      fresh: delete an earlier run of this experiment first, after asking unless `yes`.
      debug: open IPython after set-up instead of training; nothing is written.
      replay_step: with `debug`, first train from the last checkpoint to just before this step.
      allow_config_change: resume even though the configuration makes a different run.
      fallback: set damaged checkpoints aside and resume from the newest undamaged one.

    Returns:
      The number of completed updates.

    Raises:
      UserError: any error that the user can fix.
    """
    if debug and (fresh or fallback):
        raise UserError("--debug does not change experiments: remove --fresh and --fallback.")
    if replay_step and not debug:
        raise UserError("--replay_step needs --debug.")
    group = cluster.from_environment(config)
    if debug and group.count > 1:
        raise UserError("--debug works with one process only: unset TF_CONFIG.")
    with (
        group.opened(config, fresh=fresh, yes=yes) as folder,
        tf.Graph().as_default(),
        contextlib.ExitStack() as at_end,
    ):
        # ---------------------------------------------------------------- what ran before
        checkpoint_folder = os.path.join(folder, "checkpoint")
        damaged = checkpoints.fall_back(checkpoint_folder) if fallback and group.chief else []
        resumed = checkpoints.latest(checkpoint_folder) if group.chief else None
        start_step = checkpoints.step_of(resumed) if resumed else 0
        changes = experiment.check_resume(folder, config, allow_config_change) if resumed else []
        num_steps = config["model.num_steps"]
        per_step = config["model.gradient_accumulation_steps"]  # batches per step
        seed = seed_of(config["trainer.random_seed"])
        v1.set_random_seed(seed)
        np.random.seed(seed)
        notes = [f"set aside as damaged: {prefix}" for prefix in damaged]
        notes += [f"resumed with {change}" for change in changes]
        warnings = config.without_effect() + towers.set_threads(config)
        devices = towers.devices(config["trainer.num_towers"])
        proto = group.start(config, devices)
        start_step, resuming = group.meet(config, [start_step, resumed is not None])
        if any(change.startswith("model.weights_load_path:") for change in changes):
            warnings.append("model.weights_load_path has no effect: this run has its own weights.")
        profile_first, profile_last = profile_steps(config) if group.chief else (None, None)
        if profile_first and not start_step < profile_first <= num_steps:
            warnings.append(
                f"trainer.profile_steps has no effect: there is no step {profile_first}."
            )
        if replay_step and replay_step <= start_step:
            raise UserError(f"--replay_step={replay_step}: the newest checkpoint is {resumed}.")

        # ---------------------------------------------------------------- data
        step = v1.train.create_global_step()  # completed updates
        micro_step = v1.Variable(np.int64(0), False, collections=[v1.GraphKeys.LOCAL_VARIABLES])
        first_batch = v1.placeholder_with_default(np.int64(start_step * per_step), [])
        datasets, restartable = load_datasets(model, first_batch, seed, resumed, group.part)
        data, hidden = datasets["trn"].prefetch(2), None
        if not restartable:
            data, hidden = input_state.track(data)
        data_fingerprint = input_state.fingerprint(data, config, group.count)
        if resumed:
            experiment.check_data(folder, data_fingerprint, allow_config_change)
        group.agree_on_data(model, data_fingerprint)
        iterator = v1.data.make_initializable_iterator(data)
        inputs = iterator.get_next("next_batch")
        check_batch(inputs, config, group.count)

        # ---------------------------------------------------------------- towers and loss
        replicas = towers.replicate(
            model.build,
            inputs,
            devices,
            train_phase=True,
            seed=seed,
            step=step * per_step + micro_step,
            first=group.task * config["model.batch_size"] // group.count,
        )
        outputs = group.join(towers.gather(replicas))
        weights = [v for v in v1.global_variables() if v is not step]
        loss, scalars = towers.loss_of(model, replicas, outputs)
        trained = towers.select(v1.trainable_variables(), config, "model.trainable_variables")
        decayed = towers.decayed(trained, config)

        # ---------------------------------------------------------------- gradients and update
        decay_in_loss = config["model.optimizer.method"] not in optimizers.DECOUPLED
        penalty = towers.l2_loss(decayed, config) if decay_in_loss else None
        gradients = towers.gradients(model, replicas, loss, trained, devices)
        if "embeddings" in outputs:
            scalars["embedding_spread"] = towers.embedding_spread(outputs.embeddings)
        gradients, loss, scalars, votes = group.mean(gradients, loss, scalars)
        gradients = towers.add_penalty(gradients, penalty, trained)
        norm = tf.linalg.global_norm([g for g, _ in gradients])
        # An update with a NaN in it must not happen: this check precedes every assignment.
        finite = v1.check_numerics(loss + norm, flight.NOT_FINITE)
        before_update = towers.guard(v1.get_collection(v1.GraphKeys.UPDATE_OPS), finite)
        learning_rate = schedules.create(config, step)
        optimizer = optimizers.create(config, learning_rate, decayed, step)
        with tf.control_dependencies([finite, *v1.get_collection(v1.GraphKeys.UPDATE_OPS)]):
            accumulate, averaged = towers.accumulate(gradients, per_step, micro_step)
            update = optimizer.apply_gradients(towers.clip(averaged, config), global_step=step)
        averages = None
        if config["model.ema_decay"]:
            averages = v1.train.ExponentialMovingAverage(config["model.ema_decay"], step)
            with tf.control_dependencies([update]):
                update = averages.apply(trained)
        reported = {"loss": loss, "lr": learning_rate, "gradient_norm": norm, **scalars}
        if penalty is not None:
            reported["weight_decay_loss"] = penalty

        # ---------------------------------------------------------------- validation and summaries
        validate_every = config["trainer.validation_step_interval"]
        evaluate_every = config["trainer.evaluation_interval"]
        validation = None
        if "vld" in datasets and group.chief:
            batches_done = start_step // validate_every if validate_every else 0
            validation = Validation(model, datasets["vld"], devices, averages, batches_done)
        if "vld" not in datasets and evaluate_every:
            warnings.append("trainer.evaluation_interval has no effect: there is no 'vld' dataset.")
        with tf.control_dependencies([finite]):  # a histogram of a NaN is a separate error
            shown = outputs if group.count == 1 else {}  # its rows are not rows of `inputs`
            summary = summaries.merged(reported, inputs, shown, gradients, config)

        # ---------------------------------------------------------------- session: start or resume
        session = v1.Session(group.target, config=proto)
        at_end.callback(session.close)
        session.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
        session.run(v1.tables_initializer())
        variables = v1.global_variables()
        if resumed:
            checkpoints.restore(session, resumed, variables)
        elif config["model.weights_load_path"] and group.chief:
            prefix = checkpoints.find(config["model.weights_load_path"])
            loaded = checkpoints.load_matching(session, prefix, weights)
            notes.append(f"weights from {prefix}: " + meters.describe_loaded(loaded))
            if averages:  # otherwise they would start from the initial weights
                session.run([averages.average(v).assign(v) for v in trained])
        input_saver = input_state.saver(iterator) if hidden == [] else None
        if hidden:
            notes.append(
                f"datasets()['trn'] keeps state that cannot be saved ({', '.join(hidden)}): a "
                "resumed run sees other batches. Give datasets a start_step, or use stateless ops."
            )
        with data_errors():
            session.run(iterator.initializer)
            if resumed and input_saver and input_state.saved(resumed):
                input_state.restore(input_saver, session, resumed)
            if validation:
                validation.start(session)
        group.begin(session, variables)
        run_step = session.make_callable([reported, votes, update])
        run_summary_step = session.make_callable([reported, votes, update, summary])
        run_accumulate = session.make_callable([loss, accumulate]) if accumulate else None

        if debug:
            for _ in range(start_step, (replay_step or 0) - 1):
                for _ in range(per_step - 1):
                    run_accumulate()
                run_step()
            return shell(
                sess=session,
                model=model,
                towers=replicas,
                datasets=datasets,
                config=config,
                inputs=inputs,
                outputs=outputs,
                loss=loss,
                gradients=gradients,
                run_step=run_step,
            )

        # ---------------------------------------------------------------- the loop
        only_chief = group.only_chief
        only_chief(experiment.write_config, folder, config)
        only_chief(
            experiment.write_provenance, folder, model, start_step, devices, data_fingerprint
        )
        keep = config["trainer.max_checkpoints_to_keep"]
        saver = only_chief(
            checkpoints.Writer, session, variables, checkpoint_folder, keep, input_saver
        )
        at_end.callback(saver.close)
        batch_size = per_step * config["model.batch_size"]
        print_every = config["trainer.print_interval"]
        summary_every = config["trainer.summary_save_interval"]
        save_every = config["trainer.checkpoint_save_interval"]
        logged = start_step if resumed else -1
        figures = only_chief(meters.MetricsLog, folder, logged, config["trainer.log"])
        log = at_end.enter_context(contextlib.closing(figures))
        best = only_chief(meters.Best, folder, config)
        saver.keep_best(best.step)
        watch = meters.Watch()
        at_end.callback(stop_profile)
        events = only_chief(summaries.Events, folder, start_step)
        at_end.callback(events.close)
        progress = only_chief(meters.Progress, start_step, num_steps, batch_size)
        at_end.callback(progress.close)
        progress.say(
            meters.opening(model, folder, trained, devices, group.count, start_step, num_steps)
        )
        for note in [*notes, *(model.notes() if hasattr(model, "notes") else ())]:
            progress.say(note)
        for warning in warnings:
            progress.warn(warning)
        done, saved, stop = start_step, start_step if resuming else None, None
        updating = False
        forecast = meters.Forecast(start_step, num_steps, evaluate_every)
        full_passes = "vld" in datasets and evaluate_every

        def evaluate():
            started = time.monotonic()
            with progress.paused():
                values = validation.full(session)
            forecast.evaluated(time.monotonic() - started)
            log.write("vld", done, **values)
            events.write("vld", done, values)
            progress.say(meters.describe(done, values))
            return best.improved(done, values), best.stalled()

        try:
            with signals.graceful() as group.requested, data_errors():
                # A checkpoint that is not better than no training must not replace it.
                if full_passes and not resuming and group.chief_does(evaluate)[0]:
                    saver.save(saved := done, best=True)
                while done < num_steps and not stop:
                    started = time.monotonic()
                    losses = [run_accumulate()[0] for _ in range(per_step - 1)]
                    if done + 1 == profile_first:
                        tf.profiler.experimental.start(os.path.join(folder, "summaries", "trn"))
                    updating = True
                    if group.chief and due(done + 1, summary_every):
                        values, voted, _, event = run_summary_step()
                        events.write("trn", done + 1, event)
                    else:
                        values, voted, _ = run_step()
                    updating, done = False, done + 1
                    if line := forecast.step(done, time.monotonic() - started):
                        progress.say(line)
                    values["loss"] = np.mean([*losses, values["loss"]])
                    if done == profile_last:
                        stop_profile()

                    if due(done, print_every) or done == num_steps:
                        progress.report(done, values["loss"], values["lr"])
                        log.write("trn", done, **values)
                        if warning := watch.check(done, values):
                            progress.warn(warning)
                    if validation and due(done, validate_every):
                        with progress.paused():
                            values = validation.batch()
                        log.write("vld", done, **values)
                        events.write("vld", done, values)
                    if full_passes and (due(done, evaluate_every) or done == num_steps):
                        improved, stalled = group.chief_does(evaluate)
                        if improved:
                            saver.save(saved := done, best=True)
                        if stalled:
                            stop = f"no better {best.metric} since step {best.step}"
                    if due(done, save_every) and saved != done:
                        saver.save(saved := done)
                    stop = stop or group.agreed(voted)
            if saved != done:
                saver.save(saved := done)
        except tf.errors.OpError as error:
            not_finite, what = flight.found_in(error), ""
            if not_finite:
                rewind = {first_batch: done * per_step}
                again = (lambda: session.run(iterator.initializer, rewind)) if restartable else None
                fetches = flight.fetches(inputs, outputs, reported, gradients)
                where = folder if group.chief else None
                what = flight.record(where, done + 1, session, again, fetches)
            # The weights are those of step `done` if the update, which comes last, did not begin.
            lost, own_state = group.lost(error), towers.written_by(before_update)
            sound = not updating or lost or towers.failed_before(error, before_update)
            # Other state of the model may be from the failed step.
            if (lost and own_state) or not (sound and saver.finite(own_state)):
                saved = done
            if not_finite:
                raise flight.refusal(folder, done + 1, what, saved != done) from None
            if isinstance(error, tf.errors.ResourceExhaustedError):
                first = error.message.split("\n")[0]
                raise UserError(f"Out of memory; lower model.batch_size ({first}).") from None
            raise
        finally:
            if saved != done:
                saver.save(done)
        group.part_company()
        saver.wait()
        progress.say(closing(model, folder, done, num_steps, stop, fresh))
        return done


def due(step, interval):
    """Returns whether an event of every `interval` steps is due at this one; 0 means never."""
    return interval > 0 and step % interval == 0


def profile_steps(config):
    """Returns the first and the last step of `trainer.profile_steps`, or (None, None)."""
    steps = config["trainer.profile_steps"]
    if steps and (len(steps) != 2 or not 0 < steps[0] <= steps[1]):
        raise UserError(f"trainer.profile_steps takes the first and the last step, not {steps}.")
    return steps or (None, None)


def stop_profile():
    """Writes the profile that is being traced, if any."""
    with contextlib.suppress(tf.errors.UnavailableError):  # no trace is active
        tf.profiler.experimental.stop()


def closing(model, folder, done, num_steps, stop, fresh):
    """The last line of a run; `stop` is the reason why it ended early, or None."""
    if stop and done < num_steps:
        command = "the same command without --fresh" if fresh else "the same command"
        return f"stopped at step {done} ({stop}): saved in {folder}; {command} resumes"
    logs = shlex.quote(f"{folder}/summaries")
    named = experiment.arguments(model, folder)
    return (
        f"done: step {done} in {folder}; see `tensorboard --logdir={logs}`, "
        f"then run `{helptext.command('eval', 'retrieval.eval', *named)}`"
    )


# ---------------------------------------------------------------------------- a closer look


def shell(**names):
    """Opens IPython with these names."""
    try:
        import IPython
    except ModuleNotFoundError:
        raise UserError("--debug needs IPython: pip install 'prototrain[dev]'.") from None
    banner = f"The model is built and not trained yet. Available names: {', '.join(names)}."
    IPython.embed(banner1=banner, user_ns=names, colors="neutral")
    return int(names["sess"].run(v1.train.get_global_step()))
