// A service worker that adds two headers to this folder's files. With them a browser lets the page use several threads,
// also where the server cannot be told to send them.

self.oninstall = () => self.skipWaiting();
self.onactivate = (event) => event.waitUntil(self.clients.claim());
self.onfetch = (event) => event.respondWith(isolated(event.request));

async function isolated(request) {
  const answer = await fetch(request), headers = new Headers(answer.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}
