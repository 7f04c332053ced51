"""The routes translate between HTTP and the use cases. No tensors here."""

from fastapi import APIRouter
from fastapi.routing import APIRoute

from service.routes import adapters, chat, files, fine_tuning, openai, ops, playground


def _with_head(router: APIRouter) -> APIRouter:
    """The router, with HEAD for every GET; the server sends the headers of the same answer."""
    gets = [route for route in router.routes if isinstance(route, APIRoute) and route.methods == {"GET"}]
    for route in gets:
        router.add_api_route(
            route.path.removeprefix(router.prefix),
            route.endpoint,
            methods=["HEAD"],
            name=route.name,
            response_model=route.response_model,
            response_class=route.response_class,
            include_in_schema=False,
        )
    return router


ROUTERS = tuple(_with_head(module.router) for module in (adapters, chat, openai, files, fine_tuning, ops, playground))
