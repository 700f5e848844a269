"""Writes what a GGUF file says of its model, and the converter to OpenVINO
leaves out, into the files where optimum-intel would: gguf-facts.py MODEL.gguf DIR
"""
import json
import pathlib
import struct
import sys

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def read_facts(file):
    def scalar(code):
        return struct.unpack("<" + code, file.read(struct.calcsize(code)))[0]

    def value(kind):
        if kind == STRING:
            return file.read(scalar("Q")).decode("utf-8", "replace")
        if kind == ARRAY:
            element, count = scalar("I"), scalar("Q")
            return [value(element) for _ in range(count)]
        return scalar(SCALARS[kind])

    if file.read(4) != b"GGUF":
        sys.exit(f"gguf-facts: {file.name} is no GGUF file")
    scalar("I"), scalar("Q")  # version, tensors
    facts = {}
    for _ in range(scalar("Q")):
        key = value(STRING)
        facts[key] = value(scalar("I"))
    return facts


def main(model, folder):
    with open(model, "rb") as file:
        facts = read_facts(file)
    words = facts.get("tokenizer.ggml.tokens", [])
    token = {name: facts.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    ends = sorted({token[name] for name in ("eos", "eot", "eom") if token[name] is not None})
    files = {
        "config.json": {"max_position_embeddings": facts.get(facts["general.architecture"] + ".context_length")},
        "tokenizer_config.json": {f"{name}_token": words[token[name]] for name in ("bos", "eos") if token[name] is not None},
        "generation_config.json": {"eos_token_id": ends},
    }
    for name, content in files.items():
        pathlib.Path(folder, name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


main(*sys.argv[1:])
