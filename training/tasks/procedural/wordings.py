"""Builds the descriptions of one task from phrases that describe it and frames that vary the wording.

Each function returns `NUM_WORDINGS` texts. The plainest come first. The other frames are drawn with the task's name as
seed, so tasks of one family do not all use the same frames. Alternative phrases are separated by `|`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

NUM_WORDINGS = 12

_DO_FRAMES = (
    "Given {given}, {do}.",
    "You will get {given}. {Do}.",
    "I will send you {given}; {do}.",
    "Your job is to {do}.",
    "Please {do}.",
    "For every input, {do}.",
    "Can you {do}?",
    "Task: {do}. Reply with nothing else.",
    "Take {given} and {do}.",
    "{Do}, and give no explanation.",
    "I want you to {do}.",
    "Each input is {given}. {Do}.",
)
_GIVE_FRAMES = (
    "Tell me {give}.",
    "Output {give} and nothing else.",
    "Reply with {give}.",
    "Input: {given}. Output: {give}.",
    "I need {give}.",
    "{Give}, please.",
    "The answer should be {give}.",
    "For {given}, write {give}.",
    "The user sends {given}; answer with {give} only.",
    "wanted: {give}",
    "Each input is {given}, and the right output is {give}.",
)
_LABEL_ENDINGS = (
    "Answer with one of: {labels}.",
    "Possible answers: {labels}.",
    "Choose from {labels}.",
    "Options: {labels}.",
    "Use exactly one label: {labels}.",
    "Labels: {labels}",
)
_YES_NO_PLAIN = (
    "Decide whether {that}. Answer {yes} or {no}.",
    "Say {yes} if {that}, otherwise say {no}.",
)
_YES_NO_FRAMES = (
    "{Question} Answer {yes} or {no}.",
    "{Question} {yes}/{no}",
    "Check if {that} and reply {yes} or {no}.",
    "Answer {yes} when {that} and {no} when not.",
    "Given {given}, tell whether {that}: {yes} or {no}.",
    "I will send {given}. Reply {yes} only if {that}; reply {no} in all other cases.",
    "Classify {given}: {yes} if {that}, {no} if not.",
    "Output {yes} in case {that}, else output {no}.",
    "{Question} One word: {yes} or {no}.",
    "Your answer is {yes} whenever {that}. For everything else it is {no}.",
    "Find out if {that}. Possible answers: {yes}, {no}.",
    "You get {given}. {Question} Only {yes} or {no}, please.",
    "Is it true that {that}? {yes} or {no}",
    "Write {no}, unless {that}; then write {yes}.",
)
_CODED_FRAMES = (
    "Say {yes} if {that}, otherwise say {no}.",
    "{Question} If so, answer {yes}; if not, answer {no}.",
    "Answer {yes} when {that} and {no} when not.",
    "I will send {given}. Reply {yes} only if {that}; reply {no} in all other cases.",
    "Classify {given}: {yes} if {that}, {no} if not.",
    "Output {yes} in case {that}, else output {no}.",
    "Your answer is {yes} whenever {that}. For everything else it is {no}.",
    "Write {no}, unless {that}; then write {yes}.",
    "{Question} Write {yes} for yes and {no} for no.",
    "Check if {that}: {yes} if so, {no} if not.",
    "Given {given}, reply with {yes} where {that} and with {no} anywhere else.",
    "Use the label {yes} if {that}, and {no} for the rest.",
    "If {that}, the answer is {yes}. Otherwise the answer is {no}.",
)
_PLAIN_ANSWERS = (("yes", "no"), ("true", "false"), ("Y", "N"))
_EITHER_FRAMES = (
    "Write {yes} if {that}, and {no} if {other}.",
    "Answer {yes} when {that} and {no} when {other}.",
    "Given {given}, reply {yes} if {that} or {no} if {other}.",
    "Label {given}: {yes} means that {that}, {no} means that {other}.",
    "If {that}, the answer is {yes}; if {other}, it is {no}.",
    "Output {no} if {other}. Output {yes} if {that}.",
    "Sort the inputs into two groups: {yes} ({that}) and {no} ({other}).",
    "For each input say {yes} ({that}) or {no} ({other}).",
    "{yes} = {that}; {no} = {other}",
    "Choose {yes} or {no}. Take {yes} if {that}; take {no} if {other}.",
    "You get {given}. Reply with {yes} in case {that}, with {no} in case {other}.",
    "Please answer with one label: {yes} where {that}, {no} where {other}.",
    "When {other}, say {no}. When {that}, say {yes}.",
)


def open_wordings(name: str, given: str, do: str, give: str) -> tuple[str, ...]:
    """Wordings of a task with a free answer.

    Args:
        name: the task's name, the seed for drawing frames.
        given: description of an input, such as `a word|one English word`.
        do: instruction, such as `give the first letter of the word|...`.
        give: description of the answer, such as `the first letter of the word|...`.
    """
    rng = random.Random(f"wordings/{name}")
    givens, dos, gives = given.split("|"), do.split("|"), give.split("|")
    half = NUM_WORDINGS // 2
    texts = [_capital(dos[0]) + ".", f"Return {gives[0]}."]
    doing, giving = rng.sample(_DO_FRAMES, half - 1), rng.sample(_GIVE_FRAMES, half - 1)
    for i, (do_frame, give_frame) in enumerate(zip(doing, giving, strict=True), 1):
        words = {"given": givens[i % len(givens)], "do": dos[i % len(dos)], "give": gives[i % len(gives)]}
        texts += [_fill(do_frame, words), _fill(give_frame, words)]
    return tuple(texts)


def label_wordings(name: str, given: str, do: str, give: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Wordings of a task with self-explanatory labels; each wording lists the labels."""
    rng = random.Random(f"labels/{name}")
    listed = ", ".join(labels)
    endings = [_LABEL_ENDINGS[(i + rng.randrange(2)) % len(_LABEL_ENDINGS)] for i in range(NUM_WORDINGS)]
    texts = open_wordings(name, given, do, give)
    return tuple(f"{_stopped(text)} {end.format(labels=listed)}" for text, end in zip(texts, endings, strict=True))


def yes_no_wordings(
    name: str, given: str, that: str, question: str, yes: str = "yes", no: str = "no"
) -> tuple[str, ...]:
    """Wordings of a yes-no task.

    Args:
        name: the task's name, the seed for drawing frames.
        given: description of an input.
        that: the condition, such as `the number is even|...`.
        question: the condition as a question, such as `Is the number even?|...`.
        yes: the answer if the condition holds.
        no: the answer if it does not.
    """
    rng = random.Random(f"yes or no/{name}")
    if (yes, no) in _PLAIN_ANSWERS:
        frames = _YES_NO_PLAIN + tuple(rng.sample(_YES_NO_FRAMES, NUM_WORDINGS - len(_YES_NO_PLAIN)))
    else:  # every wording must define both labels
        frames = _CODED_FRAMES[:1] + tuple(rng.sample(_CODED_FRAMES[1:], NUM_WORDINGS - 1))
    return _filled(frames, given, that, yes, no, question=question)


def either_wordings(name: str, given: str, that: str, other: str, yes: str, no: str) -> tuple[str, ...]:
    """Wordings of a task with two arbitrary labels; each wording defines both labels."""
    rng = random.Random(f"either/{name}")
    frames = _EITHER_FRAMES[:1] + tuple(rng.sample(_EITHER_FRAMES[1:], NUM_WORDINGS - 1))
    return _filled(frames, given, that, yes, no, other=other)


def _filled(
    frames: Sequence[str], given: str, that: str, yes: str, no: str, *, question: str = "", other: str = ""
) -> tuple[str, ...]:
    pieces = {"given": given, "that": that, "question": question, "other": other}
    texts = []
    for i, frame in enumerate(frames):
        words = {key: (choices := text.split("|"))[i % len(choices)] for key, text in pieces.items()}
        texts.append(_fill(frame, words | {"yes": yes, "no": no}))
    return tuple(texts)


def _fill(frame: str, words: dict[str, str]) -> str:
    capitals = {key.capitalize(): _capital(text) for key, text in words.items()}
    return frame.format(**words, **capitals)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _stopped(text: str) -> str:
    return text if text[-1] in ".?!" else text + "."
