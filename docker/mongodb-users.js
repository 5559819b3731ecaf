// Creates the replica set and the two users of the database `beds`. It may be repeated.
try {
  rs.status();
} catch (notYet) {
  rs.initiate({ _id: "rs0", members: [{ _id: 0, host: "mongodb:27017" }] });
}
while (!db.hello().isWritablePrimary) sleep(200);

const beds = db.getSiblingDB("beds");
if (!beds.getRole("beds_broker")) beds.createRole({ role: "beds_broker", privileges: [], roles: [] });
if (!beds.getUser("beds_dba"))
  beds.createUser({ user: "beds_dba", pwd: process.env.DBA, roles: [{ role: "dbOwner", db: "beds" }] });
if (!beds.getUser("beds_broker")) beds.createUser({ user: "beds_broker", pwd: process.env.BROKER, roles: ["beds_broker"] });
