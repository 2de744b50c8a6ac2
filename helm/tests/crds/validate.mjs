// Reads a JSON list of custom resources, writes a JSON list of what is wrong with each: a text, or null.
const packages = {
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "cert-manager.io": "@kubernetes-models/cert-manager",
};

async function problem(object) {
  const [group, version] = object.apiVersion.split("/");
  const { [object.kind]: Model } = await import(`${packages[group]}/${group}/${version}`);
  if (!Model) return `${object.apiVersion} has no ${object.kind}`;
  try {
    new Model(object).validate();
    return null;
  } catch (error) {
    return error.message;
  }
}

let text = "";
for await (const part of process.stdin) text += part;
console.log(JSON.stringify(await Promise.all(JSON.parse(text).map(problem))));
