"""An API as somebody would write it with the Django REST framework: a router with a view set at each path, which
takes an extension for the name of a format. The same paths without regard to case, for which "ı" is an "i", are what
one finds advised for Django.

    python restframework.py PORT PATH...
"""

import sys

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.servers.basehttp import WSGIRequestHandler
from django.urls import include, re_path

port, *paths = sys.argv[1:]
settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["rest_framework"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
)
django.setup()

from rest_framework.response import Response  # these read the settings
from rest_framework.routers import DefaultRouter
from rest_framework.viewsets import ViewSet


class Metered(ViewSet):
    def list(self, request, **_):
        return Response("metered " + request.path)

    def retrieve(self, request, pk, **_):
        return self.list(request)


router = DefaultRouter()
for path in paths:
    router.register(path[1:], Metered, basename=path)
urlpatterns = [re_path("^", include(router.urls))]
for path in paths:
    urlpatterns.append(re_path(f"(?i)^{path[1:]}(?:/[^/]+)?/?$", Metered.as_view({"get": "list"})))

WSGIRequestHandler.disable_nagle_algorithm = True  # else each answer waits 40 ms, for an acknowledgement of its head
execute_from_command_line(["django", "runserver", "--noreload", "127.0.0.1:" + port])
