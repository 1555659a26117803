// Prints what the Khronos validator says of a GLB file: node validate_gltf.js PACKAGE FILE
const [validator, file] = process.argv.slice(2);
require(validator)
  .validateBytes(new Uint8Array(require("fs").readFileSync(file)))
  .then((report) => console.log(JSON.stringify(report.issues)));
