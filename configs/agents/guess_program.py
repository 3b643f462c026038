"""The game of `guess.py` as a program that asks an OpenAI-compatible endpoint.

``megarlhf rl agent.program=configs/agents/guess_program.py ...``: docs/agents.md.
"""

from openai import AsyncOpenAI

from megarlhf.demo.guessing import GUESSES, judge


async def run(prompt: str, label: str, base_url: str, api_key: str) -> float:
    """One game; returns its reward."""
    messages = [{"role": "user", "content": prompt}]
    async with AsyncOpenAI(base_url=base_url, api_key=api_key) as client:
        for _ in range(GUESSES):
            answer = await client.chat.completions.create(
                model="policy", messages=messages, max_tokens=8
            )
            said = answer.choices[0].message.content
            found, heard = judge(said, label)
            if heard is None:
                break
            messages += [
                {"role": "assistant", "content": said},
                {"role": "user", "content": heard},
            ]
    return float(found)
