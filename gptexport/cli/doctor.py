"""`gptexport doctor`: what can this machine run?"""

from __future__ import annotations

import click

from gptexport.cli.output import Output, facts, output_options, table


@click.command(short_help="What can this machine run?")
@output_options("doctor")
def doctor(output: Output) -> None:
    """Say what this machine can run: providers that really load, versions, conflicts, threads.

    \b
    Examples:
      gptexport doctor
      gptexport doctor --json
    """
    from gptexport.doctor import examine

    output.step("loading each provider of ONNX Runtime")
    health = examine()
    versions = facts([(name, version or "not installed") for name, version in health.versions.items()])
    machine = facts(
        [("cores", health.cores), ("memory", health.memory), ("instructions", " ".join(health.instructions))]
    )
    providers = table(
        [(p.name, "yes" if p.loads else "no", p.about or "") for p in health.providers], ("device", "runs", "with")
    )
    engines = table(
        [(e.name, e.version or "–", e.builds, "yes" if e.runs else "no") for e in health.engines],
        ("engines", "version", "builds for", "runs"),
    )
    reasons = [(each.name, each.reason) for each in health.providers]
    reasons += [(each.name, each.reason) for each in health.engines]
    why = facts([(f"why not {name}", reason) for name, reason in reasons])
    problems = "\n".join(f"problem: {problem}" for problem in health.problems) or "no problems found"
    best = f"fastest in floats: gptexport onnx CHECKPOINT {health.export_with}" if health.export_with else ""
    best += "\nto be measured: gptexport tune CHECKPOINT -o OUT, with int8 and int4 beside it" if best else ""
    parts = [machine, versions, providers, engines, why, best, problems]
    output.result({"ok": True, **health.to_dict()}, "\n\n".join(filter(None, parts)))
