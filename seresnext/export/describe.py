"""The model card of a checkpoint, without an export."""

from __future__ import annotations

from argparse import Namespace

from seresnext.errors import UsageError
from seresnext.export.card import write_card
from seresnext.export.create import collect_facts, read_evaluation
from seresnext.export.documents import digest_of
from seresnext.export.facts import class_names
from seresnext.files import write_atomically
from seresnext.models import build_pretrained, find_weights, open_weights
from seresnext.printable import shown_path


def describe(options: Namespace) -> None:
    """Print the card of a checkpoint, or write the card to a file, by the options of the command line."""
    path = find_weights(options.checkpoint)
    loaded = open_weights(path, options.weights)
    evaluation = read_evaluation(options.evaluation, loaded) if options.evaluation else None
    size, classes = path.stat().st_size, class_names(loaded)
    facts = collect_facts(build_pretrained(loaded), loaded, classes, digest_of(path), evaluation, size, is_export=False)
    card = write_card(facts)
    if options.output is None:
        print(card, end="")
        return
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.output, card)
    except OSError as error:
        raise UsageError(
            f"--output {shown_path(options.output)} cannot be written: {error.strerror}; choose another file"
        ) from None
    print(f"wrote {shown_path(options.output)}")
