"""LangChain's published standard tests for langchain-openai, against the gateway. Run by `make test-clients`.

The tests fetch their images and documents from the internet; here they get made-up ones. What is asked with them is passed on alike.
"""

from __future__ import annotations

import os

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests, chat_models

MODEL = os.environ["MODEL"]


class Fetched:
    """A document from nowhere."""

    content = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def made_up_documents(monkeypatch):
    monkeypatch.setattr(chat_models.httpx, "get", lambda *_, **__: Fetched)


class TestChat(ChatModelIntegrationTests):
    """Everything that the model class can say."""

    chat_model_class = ChatOpenAI
    chat_model_params = {"model": MODEL, "stream_usage": True}  # noqa: RUF012
    model_override_value = "pliant"
    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_image_tool_message = True
    supports_pdf_inputs = True
    supports_pdf_tool_message = True
    supports_audio_inputs = True
    supports_anthropic_inputs = True


class TestEmbeddings(EmbeddingsIntegrationTests):
    """Texts as texts: token arrays need an encoding that is fetched from the internet."""

    embeddings_class = OpenAIEmbeddings
    embedding_model_params = {"model": MODEL, "check_embedding_ctx_length": False}  # noqa: RUF012
