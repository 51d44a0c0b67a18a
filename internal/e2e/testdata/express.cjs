// An API as somebody would write it with Express, with all settings as they are by default: a
// router at each path, which answers there and one segment below. Without regard to case, and with
// or without a slash.
//
//     node express.cjs PORT PATH...

const express = require("express")

const [port, ...paths] = process.argv.slice(2)
const app = express()
for (const path of paths) {
  const router = express.Router()
  router.get("/", (request, response) => response.send("metered " + path))
  router.get("/:id", (request, response) => response.send("metered " + path))
  app.use(path, router)
}
app.use((request, response) => response.send("something else"))
app.listen(Number(port), "127.0.0.1")
