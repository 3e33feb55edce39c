// One action of an exported agent's policy prior, in Node (the same graphs run in a browser).
//
// npm install onnxruntime-web
// node examples/act.mjs exported/quickstart cup-spin "[0, 0.1, 0, 0.4, 0, 0, 0, 0]"
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";

const [folder, task, observation] = process.argv.slice(2);
const agent = JSON.parse(readFileSync(`${folder}/agent.json`, "utf8"));
const [encoder, policy] = await Promise.all(
  ["encoder", "policy"].map((graph) => ort.InferenceSession.create(readFileSync(`${folder}/${graph}.onnx`))),
);
const numbers = (values, ...shape) => new ort.Tensor("float32", Float32Array.from(values), shape);
const id = agent.tasks.indexOf(task);
const which = agent.tasks.length > 1 ? { task: new ort.Tensor("int64", [BigInt(id)], [1]) } : {};
const padded = Object.assign(new Float32Array(agent.dims.obs_dim), JSON.parse(observation));
const { z } = await encoder.run({ obs: numbers(padded, 1, padded.length), ...which });
const noise = numbers(new Float32Array(agent.dims.action_dim), 1, 1, agent.dims.action_dim); // none: the mean
const { mean } = await policy.run({ z: z.reshape([1, 1, z.dims[1]]), noise, ...which });
console.log(JSON.stringify([...mean.data].slice(0, agent.action_dims[id])));
