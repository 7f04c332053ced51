"""The routes: they translate between HTTP and the use cases, and hold no tensors."""

from service.routes import adapters, chat, openai, ops, playground

ROUTERS = (adapters.router, chat.router, openai.router, ops.router, playground.router)
