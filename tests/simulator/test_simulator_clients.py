"""The vendors' own clients understand the replies."""

import anthropic
import openai
import pytest

from router.simulator import SimulatorSettings, start_fleet

SETTINGS = SimulatorSettings(workers=1, base_port=0, block_tokens=32, time_scale=10_000.0, serves_pooling=True)
WORDS = "the fleet keeps what it has seen " * 30


async def test_the_openai_client_reads_every_shape() -> None:
    async with (
        await start_fleet(SETTINGS) as fleet,
        openai.AsyncOpenAI(base_url=fleet.urls[0] + "/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["sim"]
        whole = await client.chat.completions.create(
            model="sim", messages=[{"role": "user", "content": WORDS}], max_tokens=30
        )
        stream = await client.chat.completions.create(
            model="sim",
            messages=[{"role": "user", "content": WORDS}],
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens
        completion = await client.completions.create(model="sim", prompt=WORDS, max_tokens=5)
        assert completion.choices[0].finish_reason == "length"
        embedding = await client.embeddings.create(model="sim", input="one", encoding_format="float")
        assert len(embedding.data[0].embedding) == SETTINGS.embedding_dims
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.completions.create(model="other", prompt="x")


async def test_the_anthropic_client_reads_every_shape() -> None:
    async with (
        await start_fleet(SETTINGS) as fleet,
        anthropic.AsyncAnthropic(base_url=fleet.urls[0], api_key="none", max_retries=0) as client,
    ):
        whole = await client.messages.create(
            model="sim", max_tokens=30, system="be brief", messages=[{"role": "user", "content": WORDS}]
        )
        async with client.messages.stream(
            model="sim", max_tokens=30, system="be brief", messages=[{"role": "user", "content": WORDS}]
        ) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()
        assert whole.content[0].type == "text"
        assert text == whole.content[0].text
        assert final.stop_reason == "max_tokens"
        assert final.usage.cache_read_input_tokens
        counted = await client.messages.count_tokens(
            model="sim", system="be brief", messages=[{"role": "user", "content": WORDS}]
        )
        created = final.usage.cache_creation_input_tokens or 0
        assert counted.input_tokens == final.usage.input_tokens + final.usage.cache_read_input_tokens + created
