"""Steer request by request through the official openai client: the same question plain, steered, both at once, and streamed.

Start a server first, in another terminal:  steersman serve
Then:                                       python examples/server_openai.py --trait pirate
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, cast

from openai import APIConnectionError, OpenAI

QUESTION = "Why is the sky blue?"
LENGTH: dict[str, Any] = {"max_tokens": 60, "temperature": 0}


def main() -> None:
    """Ask one question in four ways."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8765/v1")
    parser.add_argument("--key", default="none", help="Only needed where the server asks for keys.")
    parser.add_argument("--trait", default="pirate", help="One of GET /v1/traits, or a recipe of yours.")
    parser.add_argument("--strength", type=float, default=1.0)
    given = parser.parse_args()
    client = OpenAI(base_url=given.url, api_key=given.key)
    try:
        ask_in_four_ways(client, given.trait, given.strength)
    except APIConnectionError:
        sys.exit(f"nothing answers at {given.url}; start a server first: steersman serve")


def ask_in_four_ways(client: OpenAI, trait: str, strength: float) -> None:
    """Print the answers; what is steered is only the request that says so."""
    messages: Any = [{"role": "user", "content": QUESTION}]
    model = client.models.list().data[0].id
    print(f"{model}: {QUESTION}\n")

    plain = client.chat.completions.create(model=model, messages=messages, **LENGTH)
    print(f"plain\n  {plain.choices[0].message.content}\n")

    # In the body of the request, beside what OpenAI defines.
    steering = {"steering": {"recipe": trait, "strength": strength}}
    steered = client.chat.completions.create(model=model, messages=messages, extra_body=steering, **LENGTH)
    print(f"{trait}, strength {strength:g}\n  {steered.choices[0].message.content}\n")

    # Both in one answer, so that they can be compared.
    both = client.chat.completions.create(
        model=model, messages=messages, extra_body={**steering, "compare": True}, **LENGTH
    )
    unsteered = cast("dict[str, Any]", both.model_extra or {})["plain"]["choices"][0]["message"]["content"]
    print(
        f"both at once: steered as before {both.choices[0].message.content == steered.choices[0].message.content}, ",
        end="",
    )
    print(f"plain as before {unsteered == plain.choices[0].message.content}\n")

    # As the name of a model, for programs that cannot send anything else; here streamed.
    print(f"model {model}:{trait}, streamed\n  ", end="")
    for chunk in client.chat.completions.create(model=f"{model}:{trait}", messages=messages, stream=True, **LENGTH):
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
