// The reference of the interface, drawn from /openapi.json.
const main = document.getElementById("operations");

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  const type = Array.isArray(schema.type) ? schema.type.filter((each) => each !== "null").join(" or ") : schema.type;
  return [type ?? "any", schema.format, schema.enum && schema.enum.filter((each) => each !== null).join(", ")]
    .filter(Boolean).join(" · ");
}

function parameters(list, components) {
  const rows = list.map((given) => {
    const known = given.$ref ? components.parameters[given.$ref.split("/").pop()] : given;
    return element("tr", {}, element("td", {}, element("code", {}, known.name)),
      element("td", {}, known.in + (known.required ? ", required" : "")),
      element("td", {}, kind(known.schema)), element("td", {}, known.description ?? ""));
  });
  return rows.length ? element("table", {}, ...rows) : "";
}

function fields(operation, components) {
  const schema = operation.requestBody?.content?.["application/json"]?.schema;
  const name = (schema?.items ?? schema)?.$ref?.split("/").pop();
  const found = components.schemas[name];
  if (!found) return "";
  const required = new Set(found.required ?? []);
  const rows = Object.entries(found.properties ?? {}).map(([field, inner]) => element("tr", {},
    element("td", {}, element("code", {}, field)), element("td", {}, required.has(field) ? "body, required" : "body"),
    element("td", {}, kind(inner)), element("td", {}, inner.description ?? "")));
  return element("table", {}, ...rows);
}

function draw(openapi) {
  main.replaceChildren();
  for (const [path, methods] of Object.entries(openapi.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      if (method === "parameters") continue;
      const given = [...(methods.parameters ?? []), ...(operation.parameters ?? [])];
      main.append(element("details", {},
        element("summary", {}, element("b", {}, method.toUpperCase()), " ", element("code", {}, path), " ",
          operation.summary ?? ""),
        parameters(given, openapi.components), fields(operation, openapi.components)));
    }
  }
}

document.getElementById("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = document.getElementById("token").value;
  const reply = await fetch("openapi.json", { headers: { Authorization: `Bearer ${token}` } });
  const body = await reply.json();
  if (reply.ok) draw(body);
  else main.replaceChildren(element("p", { role: "alert" }, body.detail));
});
