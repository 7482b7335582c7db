"""`gptexport web`: a page that runs the model in the browser."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptexport.cli.options import OutputPath, assumption_options
from gptexport.cli.output import Output, output_options, size
from gptexport.cli.parity import EXIT_PARITY_FAILED
from gptexport.cli.parity_text import result_text

if TYPE_CHECKING:
    from gptexport.web.check import WebCheck


@click.command(short_help="Write a page that runs the model in the browser.")
@click.argument("source", metavar="BUNDLE|SITE", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", "out", type=OutputPath(), help="Folder to write; must not be there.")
@click.option(
    "--packages",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where `npm ci` has put the page's packages.  [default: fetched by npm, once]",
)
@click.option("--check", is_flag=True, help="Run the page in a browser, and compare it with the checkpoint.")
@click.option("--against", "checkpoint", metavar="CHECKPOINT", help="The checkpoint that it was exported from.")
@click.option("--quick", is_flag=True, help="Check two small shapes alone.")
@click.option(
    "--browser",
    metavar="PROGRAM",
    help="Chromium, Chrome or Edge.  [default: GPTEXPORT_BROWSER, or the one that is found]",
)
@assumption_options
@output_options("web")
@click.pass_context
def web(
    ctx: click.Context,
    /,
    output: Output,
    source: Path,
    out: Path | None,
    packages: Path | None,
    check: bool,
    checkpoint: str | None,
    quick: bool,
    browser: str | None,
    **assumed: Any,
) -> None:
    """Write a page that runs BUNDLE in the browser: a folder for any web server, which asks no other server.

    \b
    Examples:
      gptexport web gpt2/ -o site/                                 then: python -m http.server -d site/
      gptexport web gpt2/ -o site/ --check --against out/ckpt.pt   and compare it in a browser
      gptexport web site/ --check --against out/ckpt.pt            a site that was written before

    \b
    --check opens the page in a browser without a window. What it computes is judged by the gates of
    `gptexport parity`, and the texts that it generates greedily must be those of a session.
    Exit code 0: the same model; 3: not the same.
    """
    if check != (checkpoint is not None):
        raise click.UsageError("--check and --against CHECKPOINT belong together: pass both, or neither.")
    if out is None and not check:
        raise click.UsageError("Missing option '-o': the folder to write, or --check for a site that is there.")
    from gptexport.web import is_site, write_site

    data: dict[str, Any] = {"ok": True, "out": str(out or source), "check": None}
    text = ""
    if out is not None:
        site = write_site(source, out, npm_packages=packages)
        for note in site.notes:
            output.note(note)
        data |= {"bytes": sum(site.files.values()), "files": site.files, "onnxruntime_web": site.onnxruntime_web}
        data |= {"tokenizer": site.tokenizer}
        text = f"{out}: {len(site.files)} files, {size(data['bytes'])}. To see it: python -m http.server -d {out}"
    elif not is_site(source):
        raise click.UsageError(f"{source} is not a site. Pass -o to write one.")
    found = None
    if checkpoint is not None:
        from gptexport.web.check import check_site

        found = check_site(out or source, checkpoint, browser=browser, quick=quick, progress=output.step, **assumed)
        data["check"] = _check_data(found)
        text = "\n".join(filter(None, (text, result_text(found.parity), _greedy_text(found))))
    output.result(data, text)
    if found is not None and not found:
        ctx.exit(EXIT_PARITY_FAILED)


def _check_data(found: WebCheck) -> dict[str, Any]:
    page = {"onnxruntime_web": found.page.onnxruntime, "threads": found.page.threads, "agent": found.page.agent}
    otherwise = list(found.encoded_otherwise)
    greedy = {"prompts": found.prompts, "different": [asdict(difference) for difference in found.different]}
    return {
        "passed": bool(found),
        "page": page,
        "greedy": greedy,
        "encoded_otherwise": otherwise,
        "parity": found.parity.to_dict(),
    }


def _greedy_text(found: WebCheck) -> str:
    equal = found.prompts - len(found.different)
    ties = sum(difference.tie for difference in found.different)
    told = f"greedy texts: {equal} of {found.prompts} are the session's"
    told += f", {ties} part at a tie" if ties else ""
    wrong = len(found.encoded_otherwise)
    return f"{told}\nFAIL  the page's tokenizer makes other ids of {wrong} texts" if wrong else told
