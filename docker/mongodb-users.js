// Creates the replica set and the two users of the database `beds`. It may be repeated, also with further members.
const hosts = (process.env.MEMBERS || "mongodb:27017").split(",");
try {
  rs.status();
} catch (notYet) {
  rs.initiate({ _id: "rs0", members: [{ _id: 0, host: hosts[0] }] });
}
while (!db.hello().isWritablePrimary) sleep(200);
for (const host of hosts) {
  if (rs.conf().members.some((member) => member.host === host)) continue;
  rs.add(host);
  while (rs.status().members.find((member) => member.name === host).stateStr !== "SECONDARY") sleep(200);
}

const beds = db.getSiblingDB("beds");
if (!beds.getRole("beds_broker")) beds.createRole({ role: "beds_broker", privileges: [], roles: [] });
if (!beds.getUser("beds_dba"))
  beds.createUser({ user: "beds_dba", pwd: process.env.DBA, roles: [{ role: "dbOwner", db: "beds" }] });
if (!beds.getUser("beds_broker")) beds.createUser({ user: "beds_broker", pwd: process.env.BROKER, roles: ["beds_broker"] });
